//! NVIDIA's run-time compiler: source in, machine code of one GPU architecture out.
//!
//! The choice behind it: as with the driver's table, everything is looked up once, a missing
//! function is an answer, and a result is a plain number. The functions below are the same in
//! CUDA 12 and 13.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::table::function_table;
use crate::libraries::{self, Found, Missing, NvidiaLibrary, Opened};

type NvrtcProgram = *mut c_void;

function_table! {
    /// The functions, under shorter names.
    Api {
        version = "nvrtcVersion"(*mut c_int, *mut c_int);
        error_text = "nvrtcGetErrorString"(u32) -> *const c_char;
        architecture_count = "nvrtcGetNumSupportedArchs"(*mut c_int);
        architectures = "nvrtcGetSupportedArchs"(*mut c_int);
        create = "nvrtcCreateProgram"(
            *mut NvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
        );
        destroy = "nvrtcDestroyProgram"(*mut NvrtcProgram);
        compile = "nvrtcCompileProgram"(NvrtcProgram, c_int, *const *const c_char);
        log_size = "nvrtcGetProgramLogSize"(NvrtcProgram, *mut usize);
        log = "nvrtcGetProgramLog"(NvrtcProgram, *mut c_char);
        cubin_size = "nvrtcGetCUBINSize"(NvrtcProgram, *mut usize);
        cubin = "nvrtcGetCUBIN"(NvrtcProgram, *mut c_char);
        ptx_size = "nvrtcGetPTXSize"(NvrtcProgram, *mut usize);
        ptx = "nvrtcGetPTX"(NvrtcProgram, *mut c_char);
    }
}

/// A source did not become machine code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NvrtcError {
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error("{call} failed: {reason}")]
    Failed { call: &'static str, reason: String },
    /// The compiler's whole log.
    #[error("{name} does not compile:\n{log}")]
    Source { name: String, log: String },
    #[error("{0:?} contains a zero byte")]
    Zero(String),
}

fn opened() -> Result<&'static Opened<Api>, Missing> {
    static OPENED: OnceLock<Opened<Api>> = OnceLock::new();
    if let Some(opened) = OPENED.get() {
        return Ok(opened);
    }
    let opened = libraries::open(NvidiaLibrary::Nvrtc, Api::find)?;
    Ok(OPENED.get_or_init(|| opened))
}

/// Where NVRTC is, and of which version.
pub(crate) fn found() -> Result<Found, Missing> {
    let Opened { functions, file } = opened()?;
    // That this fails is not known to happen, and would say nothing of where it is.
    let version = Nvrtc(functions).version().unwrap_or((0, 0));
    Ok(Found { file: file.clone(), version })
}

/// The compiler.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nvrtc(&'static Api);

impl Nvrtc {
    pub(crate) fn load() -> Result<Self, NvrtcError> {
        Ok(Self(&opened()?.functions))
    }

    /// Major and minor number of its CUDA version.
    pub(crate) fn version(self) -> Result<(u32, u32), NvrtcError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two numbers, to which there is room.
        let result = unsafe { (self.0.version)(&raw mut major, &raw mut minor) };
        self.check("nvrtcVersion", result)?;
        Ok((u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)))
    }

    /// Architectures that it compiles for, for example 90 for compute capability 9.0.
    pub(crate) fn architectures(self) -> Result<Vec<u32>, NvrtcError> {
        let mut count = 0;
        // SAFETY: writes one number, to which there is room.
        let result = unsafe { (self.0.architecture_count)(&raw mut count) };
        self.check("nvrtcGetNumSupportedArchs", result)?;
        let mut all: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: writes as many numbers as were told before: the list is the library's constant.
        let result = unsafe { (self.0.architectures)(all.as_mut_ptr()) };
        self.check("nvrtcGetSupportedArchs", result)?;
        Ok(all.into_iter().filter_map(|number| u32::try_from(number).ok()).collect())
    }

    /// Compiles `source`, which errors call `name`, to machine code; to PTX with a zero behind it if
    /// the options ask for a virtual architecture.
    pub(crate) fn compile(
        self,
        name: &str,
        source: &str,
        options: &[String],
    ) -> Result<Vec<u8>, NvrtcError> {
        let program = Compilation::new(self, name, source)?;
        let options: Vec<CString> =
            options.iter().map(|option| text(option)).collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program is live; the options are strings that end with a zero, as many as
        // told, and live until this function returns.
        let result = unsafe { (self.0.compile)(program.handle, count, pointers.as_ptr()) };
        const COMPILATION: u32 = 6;
        if result == COMPILATION {
            return Err(NvrtcError::Source { name: name.to_owned(), log: program.log()? });
        }
        // The log also explains other failures: an unknown option, built-in functions not found.
        self.check("nvrtcCompileProgram", result).map_err(|error| error.explained(&program))?;
        let code = program.bytes("nvrtcGetCUBIN", self.0.cubin_size, self.0.cubin)?;
        if code.is_empty() {
            return program.bytes("nvrtcGetPTX", self.0.ptx_size, self.0.ptx);
        }
        Ok(code)
    }

    fn check(self, call: &'static str, result: u32) -> Result<(), NvrtcError> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: the function looks any number up.
        let pointer = unsafe { (self.0.error_text)(result) };
        let reason = if pointer.is_null() {
            format!("error {result}")
        } else {
            // SAFETY: a string of the library's, ended by a zero and never freed.
            unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
        };
        Err(NvrtcError::Failed { call, reason })
    }
}

impl NvrtcError {
    /// With the program's log, if there is one.
    fn explained(self, program: &Compilation) -> Self {
        match (self, program.log()) {
            (Self::Failed { call, reason }, Ok(log)) if !log.is_empty() => {
                Self::Failed { call, reason: format!("{reason}: {log}") }
            }
            (error, _) => error,
        }
    }
}

fn text(text: &str) -> Result<CString, NvrtcError> {
    CString::new(text).map_err(|_| NvrtcError::Zero(text.chars().take(80).collect()))
}

/// An `nvrtcProgram`, destroyed when dropped.
struct Compilation {
    nvrtc: Nvrtc,
    handle: NvrtcProgram,
}

type SizeOf = unsafe extern "system" fn(NvrtcProgram, *mut usize) -> u32;
type CopyOf = unsafe extern "system" fn(NvrtcProgram, *mut c_char) -> u32;

impl Compilation {
    fn new(nvrtc: Nvrtc, name: &str, source: &str) -> Result<Self, NvrtcError> {
        let (name, source) = (text(name)?, text(source)?);
        let mut handle = std::ptr::null_mut();
        let none = std::ptr::null();
        // SAFETY: writes one pointer, to which `handle` has room; both strings end with a zero and
        // are copied; there are no headers, so their lists are not read.
        let result = unsafe {
            (nvrtc.0.create)(&raw mut handle, source.as_ptr(), name.as_ptr(), 0, none, none)
        };
        nvrtc.check("nvrtcCreateProgram", result)?;
        Ok(Self { nvrtc, handle })
    }

    fn log(&self) -> Result<String, NvrtcError> {
        let api = self.nvrtc.0;
        let bytes = self.bytes("nvrtcGetProgramLog", api.log_size, api.log)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').trim_end().to_owned())
    }

    fn bytes(&self, call: &'static str, size: SizeOf, copy: CopyOf) -> Result<Vec<u8>, NvrtcError> {
        let mut length = 0;
        // SAFETY: the program is live; writes one number, to which there is room.
        self.nvrtc.check(call, unsafe { size(self.handle, &raw mut length) })?;
        let mut bytes = vec![0_u8; length];
        // SAFETY: the program is live, and writes as many bytes as it told just now.
        let result = unsafe { copy(self.handle, bytes.as_mut_ptr().cast()) };
        self.nvrtc.check(call, result)?;
        Ok(bytes)
    }
}

impl Drop for Compilation {
    fn drop(&mut self) {
        // SAFETY: the program is live, and destroyed once. A failure leaks it, nothing more.
        let _ = unsafe { (self.nvrtc.0.destroy)(&raw mut self.handle) };
    }
}
