//! Where the runner computes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Code, Error, Result};

/// What a user asks for: `cpu`, `cpu-int8`, `cuda`, `cuda:N` or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU, on all threads.
    Cpu,
    /// The same with activations in 8 bits.
    CpuInt8,
    /// The NVIDIA GPU with this index.
    Cuda(usize),
    /// The first GPU if there is one that this build can use, else the CPU.
    Auto,
}

/// A device that is there, and what it multiplies weights with.
#[derive(Debug, Clone)]
pub struct Device(pub(super) candle_core::Device, pub(super) Activations);

/// What weights in block formats are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activations {
    /// As they are, in F32.
    Exact,
    /// Rounded to 8 bits, as llama.cpp does.
    EightBits,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let index = match text.split_once(':') {
            Some(("cuda", index)) => index.parse().ok(),
            Some(_) => None,
            None => Some(0),
        };
        match (text.split(':').next(), index) {
            (Some("cpu"), Some(_)) if !text.contains(':') => Ok(DeviceChoice::Cpu),
            (Some("cpu-int8"), Some(_)) if !text.contains(':') => Ok(DeviceChoice::CpuInt8),
            (Some("auto"), Some(_)) if !text.contains(':') => Ok(DeviceChoice::Auto),
            (Some("cuda"), Some(index)) => Ok(DeviceChoice::Cuda(index)),
            _ => Err(Error::new(Code::Usage, format!("expected cpu, cpu-int8, cuda, cuda:N or auto, found {text:?}"))
                .field("--device")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::CpuInt8 => f.write_str("cpu-int8"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceChoice::Auto => f.write_str("auto"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`Code::DeviceUnavailable`] for a GPU that this build cannot use or that is not there.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::cpu()),
            DeviceChoice::CpuInt8 => Ok(Device::cpu_int8()),
            DeviceChoice::Cuda(index) => cuda(index),
            DeviceChoice::Auto => Ok(cuda(0).unwrap_or_else(|_| Device::cpu())),
        }
    }
}

impl Device {
    /// The CPU, everything in F32.
    pub fn cpu() -> Self {
        Device(candle_core::Device::Cpu, Activations::Exact)
    }

    /// The CPU. Activations are rounded to 8 bits where weights in block formats are multiplied with them, as llama.cpp does:
    /// faster, and as far from PyTorch as that.
    pub fn cpu_int8() -> Self {
        Device(candle_core::Device::Cpu, Activations::EightBits)
    }

    /// `cpu`, `cpu-int8` or `cuda`.
    pub fn name(&self) -> &'static str {
        match self.1 {
            _ if self.0.is_cuda() => "cuda",
            Activations::Exact => "cpu",
            Activations::EightBits => "cpu-int8",
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    candle_core::Device::new_cuda(index).map(|device| Device(device, Activations::Exact)).map_err(|e| {
        Error::new(Code::DeviceUnavailable, format!("expected a usable NVIDIA GPU with index {index}, found none: {e}"))
            .field("--device")
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda(index: usize) -> Result<Device> {
    let message = format!(
        "expected a build with GPU support for cuda:{index}, found one without: build with `cargo install --path . \
         --features cuda` (needs the CUDA toolkit), or use --device cpu"
    );
    Err(Error::new(Code::DeviceUnavailable, message).field("--device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed_strictly() {
        for (text, expected) in [
            ("cpu", DeviceChoice::Cpu),
            ("cpu-int8", DeviceChoice::CpuInt8),
            ("auto", DeviceChoice::Auto),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), expected);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1:2", "cpu:0", "cpu-int8:0", "auto:1", "CPU"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap_err().code(), Code::Usage, "{text}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn asking_for_a_gpu_without_support_is_an_error_that_says_how_to_build() {
        let e = DeviceChoice::Cuda(0).open().unwrap_err();
        assert_eq!(e.code(), Code::DeviceUnavailable);
        assert!(e.message().contains("--features cuda"), "{e}");
        assert_eq!(DeviceChoice::Auto.open().unwrap().name(), "cpu");
    }
}
