//! PyTorch in another process: it is told a task, then runs it whenever it is its turn.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use smalti::Float;

/// A tensor that both get.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a, T> {
    /// Its name in the task.
    pub name: &'a str,
    /// The length of each axis.
    pub shape: &'a [usize],
    /// Row-major.
    pub values: &'a [T],
}

/// The other process, or why there is none.
#[derive(Debug)]
pub struct Peer(Result<Process, String>);

#[derive(Debug)]
struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    name: String,
    folder: tempfile::TempDir,
}

impl Peer {
    /// Starts `bench/peers/pytorch.py` with the Python that `SMALTI_PYTHON` names.
    #[must_use]
    pub fn pytorch(threads: usize) -> Self {
        Self::start("pytorch.py", |_| Ok(vec![threads.to_string()]))
    }

    /// Starts `bench/peers/pytorch_cuda.py`, which makes its operands of these numbers, repeated with this period; on
    /// PyTorch's `device`, and without `measuring` on one call of each kind.
    #[cfg(feature = "cuda")]
    pub(crate) fn pytorch_cuda(device: &str, measuring: bool, numbers: &[f32], period: usize) -> Self {
        Self::start("pytorch_cuda.py", |folder| {
            let path = folder.join("numbers");
            std::fs::write(&path, bytemuck::cast_slice(numbers))?;
            Ok(vec![device.to_owned(), measuring.to_string(), path.display().to_string(), period.to_string()])
        })
    }

    /// One that cannot run.
    pub(crate) fn absent(reason: &str) -> Self {
        Self(Err(reason.to_owned()))
    }

    fn start(script: &str, arguments: impl FnOnce(&Path) -> std::io::Result<Vec<String>>) -> Self {
        let python = std::env::var_os("SMALTI_PYTHON").ok_or_else(|| "SMALTI_PYTHON is not set".to_owned());
        let start = |python| {
            let folder = tempfile::tempdir()?;
            let arguments = arguments(folder.path())?;
            Process::start(Path::new(&python), script, &arguments, folder)
        };
        Self(python.and_then(|python| start(python).map_err(|error: std::io::Error| error.to_string())))
    }

    /// Its name and version, or that it is absent and why.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.0 {
            Ok(process) => process.name.clone(),
            Err(reason) => format!("PyTorch is absent: {reason}"),
        }
    }

    /// Tells it the next task, and has it run once. What fails here is reported as absent from then on.
    pub fn prepare<T: Float>(&mut self, mut task: Value, operands: &[Operand<'_, T>]) {
        let Ok(process) = &mut self.0 else { return };
        let told = (|| {
            for operand in operands {
                let path = process.folder.path().join(operand.name);
                std::fs::write(&path, bytemuck::cast_slice(operand.values))?;
                task[operand.name] = json!({"path": path, "shape": operand.shape, "dtype": T::DTYPE.name()});
            }
            process.ask(&task)
        })();
        if let Err(error) = told {
            self.0 = Err(error.to_string());
        }
    }

    /// Runs the task and returns its seconds by the peer's own clock.
    pub fn run(&mut self) -> Option<f64> {
        self.ask(&json!("run"))?.as_f64()
    }

    /// The answer to a question. What fails here is reported as absent from then on.
    pub(crate) fn ask(&mut self, question: &Value) -> Option<Value> {
        match self.0.as_mut().ok()?.ask(question) {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.0 = Err(error.to_string());
                None
            }
        }
    }
}

impl Process {
    fn start(python: &Path, script: &str, arguments: &[String], folder: tempfile::TempDir) -> std::io::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script);
        let mut command = Command::new(python);
        command.arg(script).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let missing = || std::io::Error::other("no pipe to the peer");
        let to = child.stdin.take().ok_or_else(missing)?;
        let from = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let mut process = Self { child, to, from, name: String::new(), folder };
        process.name = process.answer()?.as_str().unwrap_or("PyTorch").to_owned();
        Ok(process)
    }

    fn ask(&mut self, question: &Value) -> std::io::Result<Value> {
        writeln!(self.to, "{question}")?;
        self.to.flush()?;
        self.answer()
    }

    fn answer(&mut self) -> std::io::Result<Value> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err(std::io::Error::other("the peer ended"));
        }
        let answer: Value = serde_json::from_str(&line)?;
        match answer.get("error") {
            Some(error) => Err(std::io::Error::other(error.to_string())),
            None => Ok(answer),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
