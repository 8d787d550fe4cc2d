//! Kernels: from the sources in `kernels/` to machine code of the GPU that is there.
//!
//! - [`Compiler`] compiles for one device; `cache` keeps what was compiled in files.
//! - [`Source`] is a kernel's text, with the texts that come before it.
//!
//! The choice behind it: compiling when the program runs, one binary serves every generation of
//! GPUs, and a head size or number format is a constant of the code. It takes some tenths of a
//! second per file, once for a version of vecmill, compiler, driver and GPU.

mod cache;

use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::Module;
use crate::driver::nvrtc::{Nvrtc, NvrtcError};
use crate::gemm::Format;
use crate::gpu::Gpu;
use cache::Cache;

/// Named texts that are compiled as one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source(&'static [(&'static str, &'static str)]);

macro_rules! source {
    ($($file:literal),+) => {
        Source(&[$(($file, include_str!(concat!("../../kernels/", $file)))),+])
    };
}

/// A kernel that stops with a fault.
#[cfg(feature = "faults")]
pub(crate) const FAULT: Source =
    Source(&[("fault.cu", "extern \"C\" __global__ void fault() { asm(\"trap;\"); }")]);

/// Embedding and residual sums, normalised.
pub(crate) const NORM: Source = source!("prelude.cuh", "moments.cuh", "norm.cu");
/// Token rows to sequence rows.
pub(crate) const POOL: Source = source!("prelude.cuh", "pool.cu");
/// Activations in place.
pub(crate) const ACTIVATION: Source = source!("prelude.cuh", "activation.cu");
/// Sums and gates.
pub(crate) const ELEMENTS: Source = source!("prelude.cuh", "elements.cu");
/// Rotary positions.
pub(crate) const ROTATE: Source = source!("prelude.cuh", "sequences.cuh", "rotate.cu");
/// Linear layers of sizes that cuBLASLt does not take well.
pub(crate) const LINEAR_ANY: Source = source!("prelude.cuh", "linear_any.cu");
/// Attention on tensor cores.
pub(crate) const ATTENTION: Source =
    source!("prelude.cuh", "mma.cuh", "sequences.cuh", "softmax.cuh", "attention.cu");
/// Attention on Hopper, of the commonest head sizes.
pub(crate) const ATTENTION_SM90: Source = source!(
    "prelude.cuh",
    "mma.cuh",
    "hopper.cuh",
    "sequences.cuh",
    "softmax.cuh",
    "attention_sm90.cu"
);
/// Attention for all that the others do not take.
pub(crate) const ATTENTION_ANY: Source =
    source!("prelude.cuh", "sequences.cuh", "attention_any.cu");

/// Linear layers on Hopper.
pub(crate) const GEMM_SM90: Source = source!(
    "prelude.cuh",
    "moments.cuh",
    "hopper.cuh",
    "gemm_sm90_tiles.cuh",
    "gemm_sm90_epilogue.cuh",
    "gemm_sm90_norm.cuh",
    "gemm_sm90.cu"
);
/// Whole feed-forward blocks on Hopper.
pub(crate) const FEED_FORWARD_SM90: Source =
    source!("prelude.cuh", "hopper.cuh", "feed_forward_sm90_tiles.cuh", "feed_forward_sm90.cu");

impl Source {
    /// The last text's name: that of the kernels.
    pub(crate) fn name(self) -> &'static str {
        self.0.last().map_or("", |(name, _)| name)
    }

    /// One text, in which errors name file and line.
    fn text(self) -> String {
        self.0.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
    }
}

/// Compiles for one device.
#[derive(Debug)]
pub(crate) struct Compiler {
    device: Gpu,
    nvrtc: Nvrtc,
    architecture: String,
    cache: Cache,
    /// What compiled code depends on beside source and options.
    origin: String,
}

impl Compiler {
    /// A compiler that keeps its results in `folder`; without one, only as long as the program runs.
    pub(crate) fn new(device: &Gpu, folder: Option<PathBuf>) -> Result<Self, NvrtcError> {
        let nvrtc = Nvrtc::load()?;
        let info = device.info();
        let architecture = architecture(info.compute_capability, &nvrtc.architectures()?);
        let origin = format!("nvrtc {:?} driver {:?}", nvrtc.version()?, info.driver);
        let (device, cache) = (device.clone(), Cache::new(folder));
        Ok(Self { device, nvrtc, architecture, cache, origin })
    }

    /// What it compiles for, for example `sm_90a`.
    pub(crate) fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Loads `source`, compiled for values in `format` and with `defines`, for example
    /// `HEAD_SIZE=64`.
    pub(crate) fn load(
        &self,
        source: Source,
        format: Format,
        defines: &[String],
    ) -> Result<Arc<Module>, CompileError> {
        let code = self.code(source, format, defines)?;
        Module::load(self.device.context(), &code).map_err(|error| CompileError::Load {
            name: source.name(),
            reason: error.of(self.device.name(), code.len()).to_string(),
        })
    }

    fn code(
        &self,
        source: Source,
        format: Format,
        defines: &[String],
    ) -> Result<Vec<u8>, NvrtcError> {
        let (text, options) = (source.text(), self.options(format, defines));
        let key = cache::key([self.origin.as_str(), &text].into_iter().chain(
            // Each option by itself: joined, two lists could read the same.
            options.iter().map(String::as_str),
        ));
        if let Some(code) = self.cache.read(&key) {
            return Ok(code);
        }
        let code = self.nvrtc.compile(source.name(), &text, &options)?;
        self.cache.write(&key, &code);
        Ok(code)
    }

    fn options(&self, format: Format, defines: &[String]) -> Vec<String> {
        let format = match format {
            Format::F16 => "T_F16",
            Format::Bf16 => "T_BF16",
            Format::F32 => "T_F32",
        };
        let mut options =
            vec!["--std=c++17".to_owned(), format!("--gpu-architecture={}", self.architecture)];
        options.extend(["--device-as-default-execution-space".to_owned(), format!("-D{format}")]);
        options.extend(defines.iter().map(|define| format!("-D{define}")));
        options
    }
}

/// Kernels could not be made ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompileError {
    #[error(transparent)]
    Compiler(#[from] NvrtcError),
    #[error("the driver refuses the kernels of {name}: {reason}")]
    Load { name: &'static str, reason: String },
}

/// What to compile for: the device's own architecture, with the instructions that only it has; else
/// the highest below it of its generation, whose machine code it runs; else the highest of older
/// ones, as PTX, which the driver compiles.
fn architecture((major, minor): (u32, u32), known: &[u32]) -> String {
    let own = major * 10 + minor;
    let best = known.iter().copied().filter(|&known| known <= own).max().unwrap_or(own);
    match best {
        // From Hopper on, an `a` allows what later generations may not have.
        _ if best == own && own >= 90 => format!("sm_{best}a"),
        _ if best / 10 == major => format!("sm_{best}"),
        _ => format!("compute_{best}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gemm::{used, used_feed_forward};
    use crate::kernels::{HOPPER_HEAD_SIZE, hopper_shared_bytes};

    #[test]
    fn a_device_newer_than_the_compiler_gets_the_closest_code() {
        let known = [75, 80, 86, 89, 90, 100, 120];
        assert_eq!(architecture((8, 9), &known), "sm_89");
        assert_eq!(architecture((9, 0), &known), "sm_90a");
        assert_eq!(architecture((12, 1), &known), "sm_120", "without what only 12.0 has");
        assert_eq!(architecture((10, 3), &[80, 90, 100]), "sm_100");
        assert_eq!(architecture((10, 0), &[80, 86, 90]), "compute_90", "no machine code runs");
        assert_eq!(architecture((7, 0), &known), "sm_70", "the compiler will say that it can't");
    }

    fn formats() -> [(Format, &'static str); 3] {
        [(Format::F16, "T_F16"), (Format::Bf16, "T_BF16"), (Format::F32, "T_F32")]
    }

    /// Without a device: what it would compile, for every architecture that matters.
    #[test]
    #[ignore = "needs NVRTC"]
    fn every_kernel_compiles_for_every_architecture() {
        let nvrtc = Nvrtc::load().unwrap();
        let sources =
            [NORM, POOL, ACTIVATION, ELEMENTS, ROTATE, LINEAR_ANY, ATTENTION, ATTENTION_ANY];
        for (architecture, source) in
            ["sm_75", "sm_80", "sm_90a"].iter().flat_map(|a| sources.map(|source| (a, source)))
        {
            for (format, define) in formats() {
                let tensor_cores = source.name() == ATTENTION.name();
                if tensor_cores && format == Format::F32
                    || *architecture == "sm_75" && tensor_cores && format == Format::Bf16
                {
                    continue;
                }
                for (head_size, windowed) in [(32, 0), (64, 0), (64, 1), (96, 1), (128, 0)] {
                    let options = [
                        "--std=c++17".to_owned(),
                        format!("--gpu-architecture={architecture}"),
                        format!("-D{define}"),
                        format!("-DHEAD_SIZE={head_size}"),
                        format!("-DWINDOWED={windowed}"),
                    ];
                    let code = nvrtc.compile(source.name(), &source.text(), &options);
                    assert!(!code.unwrap().is_empty());
                }
            }
        }
    }

    #[test]
    #[ignore = "needs NVRTC"]
    fn kernels_that_write_fp8_compile_where_it_is() {
        let nvrtc = Nvrtc::load().unwrap();
        for source in [NORM, ELEMENTS, ATTENTION, ATTENTION_ANY, ATTENTION_SM90] {
            let options = ["--std=c++17", "--gpu-architecture=sm_90a", "-DT_F16", "-DHEAD_SIZE=64"];
            let mut options = options.map(str::to_owned).to_vec();
            options.push("-DFP8_OUTPUT=1".to_owned());
            let code = nvrtc.compile(source.name(), &source.text(), &options);
            assert!(!code.unwrap().is_empty());
        }
    }

    #[test]
    #[ignore = "needs NVRTC"]
    fn every_used_variant_for_hopper_compiles_and_takes_the_shared_memory_it_is_given() {
        let nvrtc = Nvrtc::load().unwrap();
        let products = used().into_iter().map(|v| (GEMM_SM90, v.shared_bytes(), v.defines()));
        let blocks = used_feed_forward().into_iter();
        let blocks = blocks.map(|b| (FEED_FORWARD_SM90, b.shared_bytes(), b.defines()));
        for (source, shared_bytes, defines) in products.chain(blocks) {
            for define in ["T_F16", "T_BF16"] {
                let mut options = vec!["--std=c++17".to_owned()];
                options.extend(["--gpu-architecture=sm_90a".to_owned(), format!("-D{define}")]);
                options.extend(defines.iter().map(|define| format!("-D{define}")));
                let check = format!("static_assert(SHARED_BYTES == {shared_bytes});");
                let code = nvrtc.compile(source.name(), &(source.text() + &check), &options);
                assert!(!code.unwrap().is_empty());
            }
        }
    }

    #[test]
    fn every_file_of_kernels_is_part_of_the_program() {
        let mut sources = vec![NORM, POOL, ACTIVATION, ELEMENTS, ROTATE, LINEAR_ANY];
        sources.extend([ATTENTION, ATTENTION_SM90, ATTENTION_ANY, GEMM_SM90, FEED_FORWARD_SM90]);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        // It is not there if the test was built on another machine.
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let name = entry.unwrap().file_name();
            let mut files = sources.iter().flat_map(|source| source.0);
            assert!(files.any(|(file, _)| name == *file), "{name:?} is in no source");
        }
    }

    fn compile(source: Source, options: &[&str]) -> Result<Vec<u8>, String> {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        let compiled = Nvrtc::load().unwrap().compile(source.name(), &source.text(), &options);
        compiled.map_err(|error| error.to_string())
    }

    #[test]
    #[ignore = "needs NVRTC"]
    fn attention_for_hopper_compiles_and_takes_the_shared_memory_it_is_given() {
        let nvrtc = Nvrtc::load().unwrap();
        for (define, windowed) in [("F16", 0), ("BF16", 0), ("F16", 1), ("BF16", 1)] {
            let size = HOPPER_HEAD_SIZE;
            let mut options = vec!["--std=c++17".to_owned()];
            options.extend(["--gpu-architecture=sm_90a".to_owned(), format!("-DT_{define}")]);
            options.push(format!("-DHEAD_SIZE={size}"));
            options.push(format!("-DWINDOWED={windowed}"));
            let check = format!("static_assert(SHARED_BYTES == {});", hopper_shared_bytes(size));
            let text = ATTENTION_SM90.text() + &check;
            assert!(!nvrtc.compile(ATTENTION_SM90.name(), &text, &options).unwrap().is_empty());
        }
    }

    #[test]
    #[ignore = "needs NVRTC"]
    fn an_error_names_file_and_line_and_has_the_whole_log() {
        const BROKEN: Source = Source(&[
            ("first.cuh", "typedef int number;\n\n"),
            ("broken.cu", "\nnumbr x;\nint = 1;"),
        ]);
        let error = compile(BROKEN, &["--gpu-architecture=sm_80"]).unwrap_err();
        assert!(error.starts_with("broken.cu does not compile:"), "{error}");
        for expected in ["broken.cu(2): error", "\"numbr\"", "broken.cu(3): error"] {
            assert!(error.contains(expected), "{error}");
        }
        const SHARED: Source = Source(&[("first.cuh", "\n\nint = 1;"), ("right.cu", "int x;")]);
        let error = compile(SHARED, &["--gpu-architecture=sm_80"]).unwrap_err();
        assert!(error.contains("first.cuh(3): error"), "{error}");
    }

    #[test]
    fn every_kernel_waits_for_the_one_before() {
        let files = [NORM, POOL, ACTIVATION, ELEMENTS, ROTATE, LINEAR_ANY, ATTENTION];
        let others = [ATTENTION_SM90, ATTENTION_ANY, GEMM_SM90, FEED_FORWARD_SM90];
        for Source(files) in files.into_iter().chain(others) {
            let (file, text) = files.last().unwrap();
            let kernels = text.matches("extern \"C\" __global__").count();
            let waits = text.matches("await_previous_kernel();").count();
            // Both of the products' kernels call one function.
            let expected = if *file == "gemm_sm90.cu" { 1 } else { kernels };
            assert!(kernels > 0 && waits == expected, "{file}: {kernels} kernels, {waits} waits");
        }
    }

    const RIGHT: Source = Source(&[("right.cu", "__global__ void right() {}")]);

    #[test]
    #[ignore = "needs NVRTC"]
    fn errors_that_are_not_the_sources_are_explained_too() {
        let error = compile(RIGHT, &["--no-such-option"]).unwrap_err();
        assert!(error.contains("no-such-option"), "{error}");
        let error = compile(RIGHT, &["-DA=\0"]).unwrap_err();
        assert!(error.contains("zero byte"), "{error}");
    }

    #[test]
    #[ignore = "needs NVRTC"]
    fn a_virtual_architecture_gets_ptx() {
        let machine_code = compile(RIGHT, &["--gpu-architecture=sm_75"]).unwrap();
        assert!(machine_code.starts_with(b"\x7fELF"));
        let ptx = compile(RIGHT, &["--gpu-architecture=compute_75"]).unwrap();
        assert_eq!(ptx.last(), Some(&0), "its end, for the driver");
        assert!(String::from_utf8_lossy(&ptx).contains(".target sm_75"));
    }
}
