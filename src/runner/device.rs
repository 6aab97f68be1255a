//! Where the runner computes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Code, Error, Result};

/// What a user asks for: `cpu`, `cuda`, `cuda:N` or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU, on all threads.
    Cpu,
    /// The NVIDIA GPU with this index.
    Cuda(usize),
    /// The first GPU if there is one that this build can use, else the CPU.
    Auto,
}

/// A device that is there.
#[derive(Debug, Clone)]
pub struct Device(pub(super) candle_core::Device);

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
            (Some("auto"), Some(_)) if !text.contains(':') => Ok(DeviceChoice::Auto),
            (Some("cuda"), Some(index)) => Ok(DeviceChoice::Cuda(index)),
            _ => Err(Error::new(Code::Usage, format!("expected cpu, cuda, cuda:N or auto, found {text:?}"))
                .field("--device")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
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
            DeviceChoice::Cuda(index) => cuda(index),
            DeviceChoice::Auto => Ok(cuda(0).unwrap_or_else(|_| Device::cpu())),
        }
    }
}

impl Device {
    /// The CPU.
    pub fn cpu() -> Self {
        Device(candle_core::Device::Cpu)
    }

    /// `cpu` or `cuda`.
    pub fn name(&self) -> &'static str {
        if self.0.is_cuda() { "cuda" } else { "cpu" }
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    candle_core::Device::new_cuda(index).map(Device).map_err(|e| {
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
            ("auto", DeviceChoice::Auto),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), expected);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1:2", "cpu:0", "auto:1", "CPU"] {
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
