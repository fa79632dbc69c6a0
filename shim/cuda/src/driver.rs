//! The checkpoint calls of `libcuda.so.1`, declared as in `cuda.h` of CUDA 13.0.
//!
//! Every argument struct is 64 bytes, unused ones zero. Symbols are looked up one by one when they
//! are needed: an old driver still answers what it can.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    mem::size_of,
    ptr,
};

use libloading::os::unix::Library;

use crate::{
    library::{CUDA, LibraryError, Search},
    protocol::State,
};

type CuResult = c_int;

/// `CUDA_ERROR_NOT_INITIALIZED`: what the driver says of a process without CUDA.
const NOT_INITIALIZED: CuResult = 3;
/// `CUDA_ERROR_OPERATING_SYSTEM`: what it says of a pid that is not there.
const OPERATING_SYSTEM: CuResult = 304;
/// `CUDA_ERROR_ILLEGAL_STATE`.
pub const ILLEGAL_STATE: u32 = 401;
/// `CUDA_ERROR_NOT_READY`: what a lock that timed out returns.
pub const NOT_READY: u32 = 600;
/// `CUDA_ERROR_NOT_SUPPORTED`.
pub const NOT_SUPPORTED: u32 = 801;

#[repr(C)]
struct LockArgs {
    timeout_ms: c_uint,
    reserved: [c_uint; 15],
}

#[repr(C)]
struct GpuPair {
    old: [u8; 16],
    new: [u8; 16],
}

#[repr(C)]
struct RestoreArgs {
    pairs: *const GpuPair,
    count: c_uint,
    reserved: [c_uint; 13],
}

const _: () = assert!(size_of::<LockArgs>() == 64 && size_of::<RestoreArgs>() == 64);

/// Why the driver did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// It is not there, or too old.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// It said no.
    #[error("{call}({pid}): {text} ({name}, {code})")]
    Refused {
        /// The call.
        call: &'static str,
        /// For whom.
        pid: u32,
        /// `CUresult`.
        code: u32,
        /// Its name.
        name: String,
        /// What it means.
        text: String,
    },
    /// No GPU is named so.
    #[error("{0:?} is no GPU's UUID; it is written GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")]
    Uuid(String),
}

impl DriverError {
    /// The driver's `CUresult`.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// The driver.
#[derive(Debug)]
pub struct Driver {
    library: Library,
    path: String,
}

impl Driver {
    /// Loads it. It is not initialised: its checkpoint calls need that neither here nor there.
    pub fn load(search: &Search) -> Result<Self, LibraryError> {
        let (library, path) = search.load(CUDA)?;
        Ok(Self { library, path })
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its CUDA version, as 13000; 0 when it does not tell.
    #[must_use]
    pub fn cuda_version(&self) -> u32 {
        type Call = unsafe extern "C" fn(*mut c_int) -> CuResult;
        let mut version = 0;
        // SAFETY: the signature is that of cuda.h, and the pointer is good for the call.
        let told = self
            .symbol::<Call>(c"cuDriverGetVersion")
            .is_ok_and(|call| unsafe { call(&raw mut version) } == 0);
        if told { version.unsigned_abs() } else { 0 }
    }

    /// The state of a process. Blocks while the process is frozen or changes its state.
    pub fn state(&self, pid: u32) -> Result<State, DriverError> {
        type Call = unsafe extern "C" fn(c_int, *mut c_int) -> CuResult;
        const NAME: &CStr = c"cuCheckpointProcessGetState";
        let call = self.symbol::<Call>(NAME)?;
        let mut state = -1;
        // SAFETY: as declared in cuda.h; the pointer is good for the call.
        let result = unsafe { call(signed(pid), &raw mut state) };
        match (result, state) {
            (NOT_INITIALIZED, _) => Ok(State::None),
            (0, 0) => Ok(State::Running),
            (0, 1) => Ok(State::Locked),
            (0, 2) => Ok(State::Checkpointed),
            (0, _) => Ok(State::Failed),
            (OPERATING_SYSTEM, _) if !crate::process::is_there(pid) => Ok(State::None),
            (code, _) => Err(self.refused(NAME, pid, code)),
        }
    }

    /// The thread that restores a process, by its id in the process's own PID namespace; 0 when
    /// the process has not chosen one.
    pub fn restore_thread(&self, pid: u32) -> Result<u32, DriverError> {
        type Call = unsafe extern "C" fn(c_int, *mut c_int) -> CuResult;
        const NAME: &CStr = c"cuCheckpointProcessGetRestoreThreadId";
        let call = self.symbol::<Call>(NAME)?;
        let mut thread = 0;
        // SAFETY: as declared in cuda.h; the pointer is good for the call.
        let result = unsafe { call(signed(pid), &raw mut thread) };
        self.check(NAME, pid, result)?;
        Ok(u32::try_from(thread).unwrap_or(0))
    }

    /// Waits until running CUDA calls have ended and stops new ones; 0 ms waits for ever.
    pub fn lock(&self, pid: u32, timeout_ms: u32) -> Result<(), DriverError> {
        type Call = unsafe extern "C" fn(c_int, *const LockArgs) -> CuResult;
        const NAME: &CStr = c"cuCheckpointProcessLock";
        let call = self.symbol::<Call>(NAME)?;
        let args = LockArgs {
            timeout_ms,
            reserved: [0; 15],
        };
        // SAFETY: as declared in cuda.h; the struct lives through the call.
        let result = unsafe { call(signed(pid), &raw const args) };
        self.check(NAME, pid, result)
    }

    /// Moves device memory into host memory of the process and lets go of its GPUs.
    pub fn checkpoint(&self, pid: u32) -> Result<(), DriverError> {
        self.without_arguments(c"cuCheckpointProcessCheckpoint", pid)
    }

    /// Takes the GPUs again and moves the memory back; `map` has old and new UUIDs.
    pub fn restore(&self, pid: u32, map: &[(String, String)]) -> Result<(), DriverError> {
        type Call = unsafe extern "C" fn(c_int, *const RestoreArgs) -> CuResult;
        const NAME: &CStr = c"cuCheckpointProcessRestore";
        let pairs = map
            .iter()
            .map(|(old, new)| {
                Ok(GpuPair {
                    old: uuid(old)?,
                    new: uuid(new)?,
                })
            })
            .collect::<Result<Vec<_>, DriverError>>()?;
        let call = self.symbol::<Call>(NAME)?;
        let args = RestoreArgs {
            pairs: pairs.as_ptr(),
            count: c_uint::try_from(pairs.len()).unwrap_or(c_uint::MAX),
            reserved: [0; 13],
        };
        let args = if pairs.is_empty() {
            ptr::null()
        } else {
            &raw const args
        };
        // SAFETY: as declared in cuda.h; the struct and the pairs live through the call.
        let result = unsafe { call(signed(pid), args) };
        self.check(NAME, pid, result)
    }

    /// Lets CUDA calls go on.
    pub fn unlock(&self, pid: u32) -> Result<(), DriverError> {
        self.without_arguments(c"cuCheckpointProcessUnlock", pid)
    }

    fn without_arguments(&self, symbol: &'static CStr, pid: u32) -> Result<(), DriverError> {
        type Call = unsafe extern "C" fn(c_int, *const c_void) -> CuResult;
        let call = self.symbol::<Call>(symbol)?;
        // SAFETY: as declared in cuda.h, where the struct of arguments is optional.
        let result = unsafe { call(signed(pid), ptr::null()) };
        self.check(symbol, pid, result)
    }

    fn symbol<T: Copy>(&self, symbol: &'static CStr) -> Result<T, LibraryError> {
        // SAFETY: every caller names the type that cuda.h declares for the symbol.
        unsafe { self.library.get::<T>(symbol.to_bytes_with_nul()) }
            .map(|symbol| *symbol)
            .map_err(|_| LibraryError::Symbol {
                library: self.path.clone(),
                symbol: text(symbol),
            })
    }

    fn check(&self, call: &'static CStr, pid: u32, result: CuResult) -> Result<(), DriverError> {
        match result {
            0 => Ok(()),
            code => Err(self.refused(call, pid, code)),
        }
    }

    fn refused(&self, call: &'static CStr, pid: u32, code: CuResult) -> DriverError {
        DriverError::Refused {
            call: text(call),
            pid,
            code: code.unsigned_abs(),
            name: self.describe(c"cuGetErrorName", code),
            text: self.describe(c"cuGetErrorString", code),
        }
    }

    fn describe(&self, symbol: &'static CStr, code: CuResult) -> String {
        type Call = unsafe extern "C" fn(CuResult, *mut *const c_char) -> CuResult;
        let mut text = ptr::null();
        let told = self
            .symbol::<Call>(symbol)
            // SAFETY: as declared in cuda.h; the pointer is good for the call.
            .is_ok_and(|call| unsafe { call(code, &raw mut text) } == 0);
        if !told || text.is_null() {
            return "unknown error".into();
        }
        // SAFETY: the driver returns a static text that ends with NUL.
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    }
}

/// A symbol's name; every one of them is ASCII.
fn text(symbol: &'static CStr) -> &'static str {
    symbol.to_str().unwrap_or("?")
}

fn signed(pid: u32) -> c_int {
    c_int::try_from(pid).unwrap_or(-1)
}

/// The 16 bytes of `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
fn uuid(text: &str) -> Result<[u8; 16], DriverError> {
    let bad = || DriverError::Uuid(text.to_owned());
    let digits: String = text
        .strip_prefix("GPU-")
        .unwrap_or(text)
        .chars()
        .filter(|c| *c != '-')
        .collect();
    if digits.len() != 32 || !digits.is_ascii() {
        return Err(bad());
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_parse_with_and_without_their_prefix() {
        let text = "b6a49388-c47d-84d9-e2b4-9b4848be9809";
        let bytes = uuid(&format!("GPU-{text}")).unwrap();
        assert_eq!(bytes[..3], [0xb6, 0xa4, 0x93]);
        assert_eq!(uuid(text).unwrap(), bytes);
        for bad in [
            "",
            "GPU-",
            "GPU-b6a49388",
            "GPU-é6a49388-c47d-84d9-e2b4-9b4848be980",
        ] {
            assert!(uuid(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_library_without_the_calls_is_no_driver() {
        // The C library is always there and never a driver.
        let search = Search {
            exact: Some("libc.so.6".into()),
            roots: Vec::new(),
        };
        let driver = Driver::load(&search).unwrap();
        assert_eq!(driver.cuda_version(), 0);
        let text = driver.state(1).unwrap_err().to_string();
        assert!(text.contains("570") && text.contains("GetState"), "{text}");
    }
}
