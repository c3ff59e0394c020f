//! CUDA graphs: a training step is a hundred small kernels, whose launches take longer than they do. Recorded once, the step is one
//! launch.
//!
//! libtorch's own `CUDAGraph` throws, and keeps memory of its own for as long as it lives. Here CUDA's C interface records the work of
//! a stream that libtorch computes on meanwhile. What is recorded allocates and frees on that stream alone, and libtorch gives a freed
//! block only to the stream that it came from: until that stream allocates again, a replay owns its memory. Hence the rules for
//! callers: a [`Graph`] is for one loop and lives no longer, the loop computes on its [`Recorder`]'s stream, and all that it keeps is
//! made before the recording: what it asks for between replays may lie in their memory, and is used up before the next. (Broken once,
//! with Adam's corrections: fits stood still and then became NaN.) One thing this does not guard against: where the card is full,
//! libtorch gives freed blocks of all streams back to the driver, so another thread's allocation could take a replay's memory away.

use crate::{NetworkError, Result};
use libloading::os::unix::{Library, Symbol};
use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_ulonglong, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::{OnceLock, PoisonError, RwLock};
use tch::{Device, TchError, Tensor};

/// `c10::cuda::CUDAStream`: a device of two bytes, and a number.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Stream {
    device: u64,
    number: i64,
}

type Handle = *mut c_void;

/// What of libtorch's and CUDA's interface is needed.
#[derive(Debug)]
struct Interface {
    current: Symbol<unsafe extern "C" fn(i8) -> Stream>,
    from_pool: Symbol<unsafe extern "C" fn(bool, i8) -> Stream>,
    set_current: Symbol<unsafe extern "C" fn(Stream)>,
    handle: Symbol<unsafe extern "C" fn(*const Stream) -> Handle>,
    begin: Symbol<unsafe extern "C" fn(Handle, c_int) -> c_int>,
    end: Symbol<unsafe extern "C" fn(Handle, *mut Handle) -> c_int>,
    instantiate: Symbol<unsafe extern "C" fn(*mut Handle, Handle, c_ulonglong) -> c_int>,
    launch: Symbol<unsafe extern "C" fn(Handle, Handle) -> c_int>,
    destroy: Symbol<unsafe extern "C" fn(Handle) -> c_int>,
    destroy_executable: Symbol<unsafe extern "C" fn(Handle) -> c_int>,
    wait: Symbol<unsafe extern "C" fn(Handle) -> c_int>,
    last_error: Symbol<unsafe extern "C" fn() -> c_int>,
    describe: Symbol<unsafe extern "C" fn(c_int) -> *const c_char>,
    version: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int>,
}

/// `cudaStreamCaptureModeRelaxed`: autograd computes on a thread of its own, and libtorch may ask for memory.
const RELAXED: c_int = 2;

impl Interface {
    /// Of the libraries that `device::choose` opened; `None` where one is another than we know.
    fn get() -> Option<&'static Self> {
        static INTERFACE: OnceLock<Option<Interface>> = OnceLock::new();
        INTERFACE.get_or_init(|| Self::find().ok()).as_ref()
    }

    fn find() -> std::result::Result<Self, libloading::Error> {
        let process = Library::this();
        // SAFETY: the signatures are those of c10/cuda/CUDAStream.h and cuda_runtime_api.h (from CUDA 12 on).
        unsafe {
            Ok(Self {
                current: process.get(b"_ZN3c104cuda20getCurrentCUDAStreamEa\0")?,
                from_pool: process.get(b"_ZN3c104cuda17getStreamFromPoolEba\0")?,
                set_current: process.get(b"_ZN3c104cuda20setCurrentCUDAStreamENS0_10CUDAStreamE\0")?,
                handle: process.get(b"_ZNK3c104cuda10CUDAStream6streamEv\0")?,
                begin: process.get(b"cudaStreamBeginCapture\0")?,
                end: process.get(b"cudaStreamEndCapture\0")?,
                instantiate: process.get(b"cudaGraphInstantiate\0")?,
                launch: process.get(b"cudaGraphLaunch\0")?,
                destroy: process.get(b"cudaGraphDestroy\0")?,
                destroy_executable: process.get(b"cudaGraphExecDestroy\0")?,
                wait: process.get(b"cudaStreamSynchronize\0")?,
                last_error: process.get(b"cudaGetLastError\0")?,
                describe: process.get(b"cudaGetErrorString\0")?,
                version: process.get(b"cudaRuntimeGetVersion\0")?,
            })
        }
    }

    /// Success, or CUDA's words.
    fn check(&self, what: &str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: a static, zero-terminated text for any number.
        let text = unsafe { CStr::from_ptr((self.describe)(status)) }.to_string_lossy().into_owned();
        Err(NetworkError::Setting(format!("CUDA: {what}: {text}")))
    }

    /// Whether it is success; else nothing is recorded any more in this process.
    fn allowed(&self, what: &str, status: c_int) -> bool {
        self.check(what, status)
            .map_err(|error| {
                // Not kept for libtorch's next call, which would report it as its own.
                unsafe { (self.last_error)() };
                REFUSED.set(error.to_string())
            })
            .is_ok()
    }
}

/// Why CUDA would not record, once it would not: the rest of the process computes without.
static REFUSED: OnceLock<String> = OnceLock::new();

/// Why steps are launched one kernel at a time from here on, where a recording failed.
pub fn refused() -> Option<&'static str> {
    REFUSED.get().map(String::as_str)
}

/// `0` in this variable of the environment computes without recording.
const SWITCH: &str = "FLATLAND_CUDA_GRAPHS";

/// Held by whoever records, shared by those who differentiate meanwhile: see [`backward`].
static GRADIENTS: RwLock<()> = RwLock::new(());

thread_local! {
    /// Whether this thread records.
    static RECORDS: Cell<bool> = const { Cell::new(false) };
    /// This thread's stream on the device that it computed on last: taken from libtorch's pool, which has 32.
    static OWN: Cell<Option<(usize, Stream)>> = const { Cell::new(None) };
    /// What it has recorded already.
    static RECORDED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// `Tensor::f_run_backward`, but not while another thread records: libtorch has one thread for all gradients of a device, and its
/// cuDNN handle would be in the recording and out of it at once: we believe that this was the `CUDNN_STATUS_INTERNAL_ERROR` that an H100
/// gave once in 18 runs with four workers.
///
/// # Errors
/// libtorch's.
pub fn backward<A: Borrow<Tensor>, B: Borrow<Tensor>>(
    of: &[A],
    by: &[B],
    keep_graph: bool,
    create_graph: bool,
) -> Result<Vec<Tensor>, TchError> {
    let on_gpu = matches!(of.first().map(|of| of.borrow().device()), Some(Device::Cuda(_)));
    let _shared =
        (on_gpu && !RECORDS.get()).then(|| GRADIENTS.read().unwrap_or_else(PoisonError::into_inner));
    Tensor::f_run_backward(of, by, keep_graph, create_graph)
}

/// While it lives, this thread's libtorch computes on a stream that can be recorded.
#[derive(Debug)]
pub struct Recorder {
    interface: &'static Interface,
    own: Stream,
    before: Stream,
    /// Streams are set by thread.
    _of_thread: PhantomData<*const ()>,
}

impl Recorder {
    /// `None` where there is nothing to record with: on a CPU, with another libtorch or CUDA than we know, after a recording failed,
    /// or where the variable `FLATLAND_CUDA_GRAPHS` is 0.
    pub fn new(device: Device) -> Option<Self> {
        let Device::Cuda(index) = device else { return None };
        let small = i8::try_from(index).ok()?;
        if REFUSED.get().is_some() || std::env::var(SWITCH).is_ok_and(|value| value == "0") {
            return None;
        }
        let interface = Interface::get()?;
        // SAFETY: as declared; libtorch's CUDA half is at work already, or its tensors would not be there.
        unsafe {
            let mut version = 0;
            if (interface.version)(&raw mut version) != 0 || version < 12_000 {
                return None;
            }
            let before = (interface.current)(small);
            let own = OWN.get().filter(|(of, _)| *of == index).map_or_else(
                || {
                    let stream = (interface.from_pool)(false, small);
                    OWN.set(Some((index, stream)));
                    stream
                },
                |(_, stream)| stream,
            );
            // What the other stream has still to do, this one may need. Not the whole device: other threads may be recording.
            if (interface.wait)((interface.handle)(&raw const before)) != 0 {
                return None;
            }
            (interface.set_current)(own);
            Some(Self { interface, own, before, _of_thread: PhantomData })
        }
    }

    /// Whether this thread was asked the same before: libraries are set up for this kind of work then.
    pub fn warm(&self, kind: &str) -> bool {
        let kind = format!("{} on {}", kind, self.own.number);
        RECORDED.with_borrow_mut(|recorded| !recorded.insert(kind))
    }

    /// Records `work` without doing it; what it did to the host's own variables stays. `None` where it cannot be recorded: the
    /// numbers on the device are as they were, and `work` done in earnest will tell what is wrong with it, if it is the work.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Option<Graph> {
        let _alone = GRADIENTS.write().unwrap_or_else(PoisonError::into_inner);
        let recording = Recording::begin(self)?;
        let worked = work();
        let graph = recording.end();
        worked.ok()?;
        graph
    }
}

/// A recording at hand, ended also by a panic.
struct Recording<'a> {
    recorder: &'a Recorder,
    stream: Handle,
    ended: bool,
}

impl<'a> Recording<'a> {
    fn begin(recorder: &'a Recorder) -> Option<Self> {
        let interface = recorder.interface;
        // SAFETY: as declared; the stream is this thread's own.
        let stream = unsafe { (interface.handle)(&raw const recorder.own) };
        let status = unsafe { (interface.begin)(stream, RELAXED) };
        if !interface.allowed("the recording did not begin", status) {
            return None;
        }
        RECORDS.set(true);
        Some(Self { recorder, stream, ended: false })
    }

    fn end(mut self) -> Option<Graph> {
        let (interface, stream) = (self.recorder.interface, self.stream);
        let mut graph = ptr::null_mut();
        if !interface.allowed("the recording broke off", self.stop(&mut graph)) || graph.is_null() {
            return None;
        }
        let mut executable = ptr::null_mut();
        // SAFETY: the graph is whole, and of no use once there is an executable one.
        let made = unsafe {
            let made = (interface.instantiate)(&raw mut executable, graph, 0);
            (interface.destroy)(graph);
            made
        };
        interface.allowed("the recording cannot be replayed", made).then(|| Graph {
            interface,
            executable,
            stream,
        })
    }

    fn stop(&mut self, graph: &mut Handle) -> c_int {
        self.ended = true;
        RECORDS.set(false);
        // SAFETY: begun above.
        unsafe { (self.recorder.interface.end)(self.stream, graph) }
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let mut graph = ptr::null_mut();
            self.stop(&mut graph);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // SAFETY: the stream that was there before, which may need what this one has still to do. An error here is the next
        // operation's too.
        unsafe {
            (self.interface.wait)((self.interface.handle)(&raw const self.own));
            (self.interface.set_current)(self.before);
        }
    }
}

/// Recorded work.
#[derive(Debug)]
pub struct Graph {
    interface: &'static Interface,
    executable: Handle,
    stream: Handle,
}

impl Graph {
    /// Does it once more, on the tensors that it was recorded with: the host does not wait.
    ///
    /// # Errors
    /// CUDA's.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: both live; see the rules above for the memory.
        let status = unsafe { (self.interface.launch)(self.executable, self.stream) };
        self.interface.check("a recorded step was not started", status)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `record`. CUDA waits with what still runs.
        unsafe { (self.interface.destroy_executable)(self.executable) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_nothing_to_record_on_a_cpu() {
        assert!(Recorder::new(Device::Cpu).is_none());
    }
}
