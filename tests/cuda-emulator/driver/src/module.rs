//! Modules: PTX text that is parsed when it is loaded, and the functions in it.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

use cuda_emulator::Module;

use crate::entries;
use crate::error::{Code, Result};
use crate::launch::Kernel;
use crate::state::{Handle, current, driver, put, put_if_wanted, put_text, to_handle};

/// `CU_JIT_ERROR_LOG_BUFFER` and the option that gives its size.
const ERROR_LOG: u32 = 5;
const ERROR_LOG_BYTES: u32 = 6;

/// The newest `.version`, as 87, that a driver for this CUDA version takes: PTX ISA, release notes.
fn newest_ptx(cuda: u32) -> u32 {
    let (major, minor) = (cuda / 1000, cuda % 1000 / 10);
    match (major, minor) {
        (..=10, _) => 65,
        (11, _) => 70 + minor,
        (12, ..=5) => 80 + minor,
        (12, _) => 79 + minor,
        _ => 90 + minor,
    }
}

/// A loaded module.
pub struct Loaded {
    pub context: usize,
    pub module: Module,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Ok(driver) = driver() {
            driver.machine.unload(&self.module);
        }
    }
}

/// Where the reason of a failure is wanted, besides stderr.
struct Log {
    to: *mut c_char,
    bytes: usize,
}

impl Log {
    const NONE: Self = Self { to: std::ptr::null_mut(), bytes: 0 };

    /// Reads the options of a load.
    unsafe fn of(count: u32, options: *const u32, values: *const *mut c_void) -> Self {
        let mut log = Self::NONE;
        for index in 0..count as usize {
            let value = values.add(index).read();
            match options.add(index).read() {
                ERROR_LOG => log.to = value.cast(),
                ERROR_LOG_BYTES => log.bytes = value.addr(),
                _ => {}
            }
        }
        log
    }

    fn write(&self, reason: &str) {
        if !self.to.is_null() && self.bytes > 0 {
            // SAFETY: the entry point's caller vouches for the buffer. A failure leaves it as it is.
            let _ = unsafe { put_text(self.to, self.bytes, reason) };
        }
    }
}

/// Loads PTX text.
fn load(module: *mut Handle, text: &str, log: &Log) -> Result {
    let context = current()?;
    let driver = driver()?;
    let failed = |reason: String, code: Code| {
        eprintln!("cuda emulator: {reason}");
        log.write(&reason);
        code
    };
    let parsed = Module::parse(text).map_err(|error| failed(error.to_string(), Code::INVALID_PTX))?;
    let (target, architecture) = (parsed.target(), driver.machine.architecture());
    if !architecture.runs(target) {
        return Err(failed(
            format!("the module is for {target}, the device is {architecture}"),
            Code::NO_BINARY_FOR_GPU,
        ));
    }
    let (major, minor) = parsed.version();
    if 10 * major + minor > newest_ptx(driver.version) {
        let (cuda, part) = (driver.version / 1000, driver.version % 1000 / 10);
        let reason = format!("PTX {major}.{minor} is too new for a driver of CUDA {cuda}.{part}");
        return Err(failed(reason, Code::UNSUPPORTED_PTX_VERSION));
    }
    driver.machine.load(&parsed).map_err(|error| failed(error.to_string(), Code::OUT_OF_MEMORY))?;
    let loaded = Arc::new(Loaded { context, module: parsed });
    let mut state = driver.state();
    let handle = state.handle();
    state.modules.insert(handle, loaded);
    // SAFETY: the entry point's caller vouches for the pointer.
    unsafe { put(module, to_handle(handle)) }
}

/// The text of an image that ends with a zero; machine code is none.
unsafe fn text<'a>(image: *const c_void) -> Result<&'a str> {
    if image.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let magic = image.cast::<[u8; 4]>().read_unaligned();
    // ELF, and the two wrappers of several images.
    if magic == *b"\x7fELF" || magic == [0x50, 0xed, 0x55, 0xba] || magic == [0xb1, 0x43, 0x62, 0x46] {
        eprintln!("cuda emulator: a module is machine code; only PTX text can run here");
        return Err(Code::NO_BINARY_FOR_GPU);
    }
    CStr::from_ptr(image.cast()).to_str().map_err(|_| Code::INVALID_IMAGE)
}

unsafe fn load_file(module: *mut Handle, path: *const c_char) -> Result {
    let path = name(path)?;
    let text = std::fs::read_to_string(path).map_err(|_| Code::FILE_NOT_FOUND)?;
    load(module, text.trim_end_matches('\0'), &Log::NONE)
}

/// A name that C gives.
pub unsafe fn name<'a>(text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    CStr::from_ptr(text).to_str().map_err(|_| Code::INVALID_VALUE)
}

fn function(function: *mut Handle, module: Handle, name: &str) -> Result {
    let mut state = driver()?.state();
    let module = Arc::clone(state.modules.get(&module.addr()).ok_or(Code::INVALID_HANDLE)?);
    module.module.function(name).ok_or(Code::NOT_FOUND)?;
    let known = state.kernels.iter().find(|(_, one)| Arc::ptr_eq(&one.module, &module) && one.name == name);
    let handle = match known {
        Some((handle, _)) => *handle,
        None => {
            let handle = state.handle();
            let kernel = Kernel { module, name: name.to_owned(), attributes: HashMap::new() };
            state.kernels.insert(handle, kernel);
            handle
        }
    };
    // SAFETY: the entry point's caller vouches for the pointer.
    unsafe { put(function, to_handle(handle)) }
}

fn unload(module: Handle) -> Result {
    let mut state = driver()?.state();
    let module = state.modules.remove(&module.addr()).ok_or(Code::INVALID_HANDLE)?;
    state.kernels.retain(|_, kernel| !Arc::ptr_eq(&kernel.module, &module));
    Ok(())
}

entries! {
    fn cuModuleLoad(module: *mut Handle, path: *const c_char) { load_file(module, path) }
    fn cuModuleLoadData(module: *mut Handle, image: *const c_void) { load(module, text(image)?, &Log::NONE) }
    fn cuModuleLoadDataEx(
        module: *mut Handle, image: *const c_void, count: u32, options: *const u32, values: *const *mut c_void,
    ) {
        load(module, text(image)?, &Log::of(count, options, values))
    }
    fn cuModuleLoadFatBinary(_module: *mut Handle, _image: *const c_void) { Err(Code::NO_BINARY_FOR_GPU) }
    fn cuModuleUnload(module: Handle) { unload(module) }
    fn cuModuleGetFunction(to: *mut Handle, module: Handle, text: *const c_char) { function(to, module, name(text)?) }
    fn cuModuleGetLoadingMode(mode: *mut u32) { put(mode, 1) }
    fn cuModuleGetGlobal_v2(address: *mut u64, bytes: *mut usize, module: Handle, text: *const c_char) {
        let driver = driver()?;
        let state = driver.state();
        let module = state.modules.get(&module.addr()).ok_or(Code::INVALID_HANDLE)?;
        let (at, size) = driver.machine.variable(&module.module, name(text)?).ok_or(Code::NOT_FOUND)?;
        put_if_wanted(address, at);
        put_if_wanted(bytes, size as usize);
        Ok(())
    }
    fn cuLibraryLoadData(
        library: *mut Handle, image: *const c_void, options: *const u32, values: *const *mut c_void, count: u32,
        _library_options: *const u32, _library_values: *const *mut c_void, _library_count: u32,
    ) {
        load(library, text(image)?, &Log::of(count, options, values))
    }
    fn cuLibraryLoadFromFile(
        library: *mut Handle, path: *const c_char, _options: *const u32, _values: *const *mut c_void, _count: u32,
        _library_options: *const u32, _library_values: *const *mut c_void, _library_count: u32,
    ) {
        load_file(library, path)
    }
    fn cuLibraryUnload(library: Handle) { unload(library) }
    fn cuLibraryGetModule(module: *mut Handle, library: Handle) { put(module, library) }
    fn cuLibraryGetKernel(kernel: *mut Handle, library: Handle, text: *const c_char) {
        function(kernel, library, name(text)?)
    }
    fn cuKernelGetFunction(to: *mut Handle, kernel: Handle) { put(to, kernel) }
    fn cuKernelGetName(to: *mut *const c_char, kernel: Handle) { function_name(to, kernel) }
    fn cuFuncGetName(to: *mut *const c_char, kernel: Handle) { function_name(to, kernel) }
    fn cuFuncLoad(_function: Handle) { Ok(()) }
    fn cuFuncIsLoaded(loaded: *mut c_int, _function: Handle) { put(loaded, 1) }
    fn cuFuncGetModule(to: *mut Handle, kernel: Handle) {
        let state = driver()?.state();
        let kernel = state.kernels.get(&kernel.addr()).ok_or(Code::INVALID_HANDLE)?;
        let found = state.modules.iter().find(|(_, module)| Arc::ptr_eq(module, &kernel.module));
        put(to, to_handle(*found.ok_or(Code::INVALID_HANDLE)?.0))
    }
    fn cuLinkCreate_v2(_count: u32, _options: *const u32, _values: *const *mut c_void, link: *mut Handle) {
        let mut state = driver()?.state();
        let handle = state.handle();
        state.links.insert(handle, Vec::new());
        put(link, to_handle(handle))
    }
    fn cuLinkAddData_v2(
        link: Handle, kind: u32, data: *const c_void, bytes: usize, _name: *const c_char, _count: u32,
        _options: *const u32, _values: *const *mut c_void,
    ) {
        // PTX text alone, and one: joining several would need a linker.
        if kind != 1 || data.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let mut state = driver()?.state();
        let linked = state.links.get_mut(&link.addr()).ok_or(Code::INVALID_HANDLE)?;
        if !linked.is_empty() {
            return Err(Code::NOT_SUPPORTED);
        }
        linked.extend(std::slice::from_raw_parts(data.cast::<u8>(), bytes).iter().take_while(|byte| **byte != 0));
        linked.push(0);
        Ok(())
    }
    fn cuLinkComplete(link: Handle, image: *mut *const c_void, bytes: *mut usize) {
        let state = driver()?.state();
        let linked = state.links.get(&link.addr()).ok_or(Code::INVALID_HANDLE)?;
        put_if_wanted(bytes, linked.len());
        put(image, linked.as_ptr().cast())
    }
    fn cuLinkDestroy(link: Handle) {
        driver()?.state().links.remove(&link.addr()).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    }
}

/// Gives out a name that lives as long as its function.
unsafe fn function_name(to: *mut *const c_char, kernel: Handle) -> Result {
    use std::collections::HashSet;
    use std::ffi::CString;
    use std::sync::Mutex;
    static NAMES: Mutex<Option<HashSet<&'static CStr>>> = Mutex::new(None);
    let state = driver()?.state();
    let kernel = state.kernels.get(&kernel.addr()).ok_or(Code::INVALID_HANDLE)?;
    let name = CString::new(kernel.name.as_str()).map_err(|_| Code::INVALID_VALUE)?;
    let mut names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let names = names.get_or_insert_default();
    let kept = match names.get(name.as_c_str()) {
        Some(kept) => *kept,
        None => {
            // Names are few and are given out for good.
            let kept: &'static CStr = Box::leak(name.into_boxed_c_str());
            names.insert(kept);
            kept
        }
    };
    put(to, kept.as_ptr())
}
