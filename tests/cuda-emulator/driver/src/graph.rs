//! Graphs: captured work that runs again.

use std::ffi::{c_char, c_void};

use crate::error::{Code, Result};
use crate::state::{Graph, Handle, driver, put, put_if_wanted, to_handle};
use crate::{entries, memory, stream};

fn instantiate(executable: *mut Handle, graph: Handle) -> Result {
    let mut state = driver()?.state();
    let graph = state.graphs.get(&graph.addr()).ok_or(Code::INVALID_HANDLE)?.clone();
    let handle = state.handle();
    // The memory stays with the graph itself.
    state.executables.insert(handle, Graph { nodes: graph.nodes, memory: Vec::new() });
    // SAFETY: the entry point's caller vouches for the pointer.
    unsafe { put(executable, to_handle(handle)) }
}

entries! {
    fn cuGraphCreate(graph: *mut Handle, _flags: u32) {
        let mut state = driver()?.state();
        let handle = state.handle();
        state.graphs.insert(handle, Graph::default());
        put(graph, to_handle(handle))
    }
    fn cuGraphDestroy(graph: Handle) {
        let mut state = driver()?.state();
        let graph = state.graphs.remove(&graph.addr()).ok_or(Code::INVALID_HANDLE)?;
        // What the capture itself did not free is the program's to free.
        for (address, _) in graph.memory.iter().filter(|(_, freed)| *freed) {
            memory::free(&mut state, *address)?;
        }
        Ok(())
    }
    fn cuGraphGetNodes(graph: Handle, _nodes: *mut Handle, count: *mut usize) {
        let state = driver()?.state();
        put(count, state.graphs.get(&graph.addr()).ok_or(Code::INVALID_HANDLE)?.nodes.len())
    }
    fn cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, _flags: u64) { instantiate(executable, graph) }
    fn cuGraphInstantiate_v2(
        executable: *mut Handle, graph: Handle, error_node: *mut Handle, _log: *mut c_char, _bytes: usize,
    ) {
        put_if_wanted(error_node, std::ptr::null_mut());
        instantiate(executable, graph)
    }
    fn cuGraphInstantiateWithParams(executable: *mut Handle, graph: Handle, _parameters: *mut c_void) {
        instantiate(executable, graph)
    }
    fn cuGraphUpload(executable: Handle, _stream: Handle) {
        driver()?.state().executables.get(&executable.addr()).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    }
    fn cuGraphLaunch(executable: Handle, stream: Handle) {
        let driver = driver()?;
        let graph = driver.state().executables.get(&executable.addr()).ok_or(Code::INVALID_HANDLE)?.clone();
        graph.nodes.iter().try_for_each(|work| stream::run(driver, stream.addr(), work))
    }
    fn cuGraphExecDestroy(executable: Handle) {
        driver()?.state().executables.remove(&executable.addr()).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    }
}
