//! What NVIDIA's management library (`nvml.h` of CUDA 13.0) knows: GPUs, their memory, and who
//! uses them. Everything is optional: a fact that can't be had is left empty or zero.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void},
    ptr,
};

use libloading::os::unix::Library;

use crate::{
    library::{NVML, Search},
    protocol::{Device, User},
};

type Handle = *mut c_void;
type Text = unsafe extern "C" fn(Handle, *mut c_char, c_uint) -> c_int;

/// `NVML_ERROR_INSUFFICIENT_SIZE`.
const INSUFFICIENT_SIZE: c_int = 7;
/// `NVML_DEVICE_MIG_ENABLE`.
const MIG_ENABLED: c_uint = 1;
/// Longest text that NVML returns, with room to spare.
const TEXT: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlProcessInfo_v2_t`, which the `_v3` calls fill.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProcessInfo {
    pid: c_uint,
    memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// The library, initialised.
pub struct Nvml(Library);

impl Nvml {
    /// Loads and initialises it; `None` when that is impossible.
    pub fn load(search: &Search) -> Option<Self> {
        let (library, _) = search.load(NVML).ok()?;
        let nvml = Self(library);
        // SAFETY: as declared in nvml.h.
        let result = unsafe { nvml.get::<unsafe extern "C" fn() -> c_int>(c"nvmlInit_v2")?() };
        (result == 0).then_some(nvml)
    }

    /// Version of the driver.
    pub fn driver(&self) -> Option<String> {
        type Call = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
        let call = self.get::<Call>(c"nvmlSystemGetDriverVersion")?;
        // SAFETY: as declared in nvml.h; the buffer has the length that is passed.
        text(|buffer, length| unsafe { call(buffer, length) })
    }

    /// All GPUs.
    pub fn devices(&self) -> Vec<Device> {
        type Count = unsafe extern "C" fn(*mut c_uint) -> c_int;
        type ByIndex = unsafe extern "C" fn(c_uint, *mut Handle) -> c_int;
        let (Some(count), Some(by_index)) = (
            self.get::<Count>(c"nvmlDeviceGetCount_v2"),
            self.get::<ByIndex>(c"nvmlDeviceGetHandleByIndex_v2"),
        ) else {
            return Vec::new();
        };
        let mut devices = 0;
        // SAFETY: as declared in nvml.h; the pointer is good for the call.
        if unsafe { count(&raw mut devices) } != 0 {
            return Vec::new();
        }
        (0..devices)
            .filter_map(|index| {
                let mut handle = ptr::null_mut();
                // SAFETY: as declared in nvml.h; the pointer is good for the call.
                (unsafe { by_index(index, &raw mut handle) } == 0).then(|| self.device(handle))
            })
            .collect()
    }

    fn device(&self, handle: Handle) -> Device {
        let memory = self.memory(handle).unwrap_or_default();
        Device {
            uuid: self.text_of(handle, c"nvmlDeviceGetUUID"),
            name: self.text_of(handle, c"nvmlDeviceGetName"),
            minor: self
                .number(handle, c"nvmlDeviceGetMinorNumber")
                .unwrap_or(u32::MAX),
            capability: self.capability(handle).unwrap_or_default(),
            memory_total: memory.total,
            memory_free: memory.free,
            mig: self.mig(handle),
            users: self.users(handle),
        }
    }

    fn text_of(&self, handle: Handle, symbol: &CStr) -> String {
        let Some(call) = self.get::<Text>(symbol) else {
            return String::new();
        };
        // SAFETY: as declared in nvml.h; the buffer has the length that is passed.
        text(|buffer, length| unsafe { call(handle, buffer, length) }).unwrap_or_default()
    }

    fn number(&self, handle: Handle, symbol: &CStr) -> Option<u32> {
        type Call = unsafe extern "C" fn(Handle, *mut c_uint) -> c_int;
        let call = self.get::<Call>(symbol)?;
        let mut number = 0;
        // SAFETY: as declared in nvml.h; the pointer is good for the call.
        (unsafe { call(handle, &raw mut number) } == 0).then_some(number)
    }

    fn capability(&self, handle: Handle) -> Option<String> {
        type Call = unsafe extern "C" fn(Handle, *mut c_int, *mut c_int) -> c_int;
        let call = self.get::<Call>(c"nvmlDeviceGetCudaComputeCapability")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: as declared in nvml.h; the pointers are good for the call.
        let result = unsafe { call(handle, &raw mut major, &raw mut minor) };
        (result == 0).then(|| format!("{major}.{minor}"))
    }

    fn memory(&self, handle: Handle) -> Option<Memory> {
        type Call = unsafe extern "C" fn(Handle, *mut Memory) -> c_int;
        let call = self.get::<Call>(c"nvmlDeviceGetMemoryInfo")?;
        let mut memory = Memory::default();
        // SAFETY: as declared in nvml.h; the struct is good for the call.
        (unsafe { call(handle, &raw mut memory) } == 0).then_some(memory)
    }

    fn mig(&self, handle: Handle) -> bool {
        type Call = unsafe extern "C" fn(Handle, *mut c_uint, *mut c_uint) -> c_int;
        let Some(call) = self.get::<Call>(c"nvmlDeviceGetMigMode") else {
            return false;
        };
        let (mut current, mut pending) = (0, 0);
        // SAFETY: as declared in nvml.h; the pointers are good for the call.
        let result = unsafe { call(handle, &raw mut current, &raw mut pending) };
        result == 0 && current == MIG_ENABLED
    }

    fn users(&self, handle: Handle) -> Vec<User> {
        let plain = self.processes(handle, c"nvmlDeviceGetComputeRunningProcesses_v3");
        let mps = self.processes(handle, c"nvmlDeviceGetMPSComputeRunningProcesses_v3");
        let user = |mps| {
            move |info: ProcessInfo| User {
                pid: info.pid,
                // All bits set means that it is not known.
                memory: if info.memory == u64::MAX {
                    0
                } else {
                    info.memory
                },
                mps,
            }
        };
        let mut users: Vec<User> = mps.into_iter().map(user(true)).collect();
        let others = plain.into_iter().map(user(false));
        for other in others {
            if !users.iter().any(|known| known.pid == other.pid) {
                users.push(other);
            }
        }
        users
    }

    fn processes(&self, handle: Handle, symbol: &CStr) -> Vec<ProcessInfo> {
        type Call = unsafe extern "C" fn(Handle, *mut c_uint, *mut ProcessInfo) -> c_int;
        let Some(call) = self.get::<Call>(symbol) else {
            return Vec::new();
        };
        let mut found = vec![ProcessInfo::default(); 64];
        // Processes may start between two calls; three rounds are plenty.
        for _ in 0..3 {
            let mut count = c_uint::try_from(found.len()).unwrap_or(c_uint::MAX);
            // SAFETY: as declared in nvml.h; the buffer holds `count` structs.
            let result = unsafe { call(handle, &raw mut count, found.as_mut_ptr()) };
            let count = usize::try_from(count).unwrap_or(0);
            match result {
                0 => {
                    found.truncate(count);
                    return found;
                }
                INSUFFICIENT_SIZE => found.resize(count + 16, ProcessInfo::default()),
                _ => return Vec::new(),
            }
        }
        Vec::new()
    }

    fn get<T: Copy>(&self, symbol: &CStr) -> Option<T> {
        // SAFETY: every caller names the type that nvml.h declares for the symbol.
        unsafe { self.0.get::<T>(symbol.to_bytes_with_nul()) }
            .ok()
            .map(|symbol| *symbol)
    }
}

/// Calls something that fills a buffer with a text.
fn text(call: impl FnOnce(*mut c_char, c_uint) -> c_int) -> Option<String> {
    let mut buffer = [0_u8; TEXT];
    let length = c_uint::try_from(TEXT - 1).ok()?;
    if call(buffer.as_mut_ptr().cast(), length) != 0 {
        return None;
    }
    let text = CStr::from_bytes_until_nul(&buffer).ok()?;
    Some(text.to_string_lossy().into_owned())
}
