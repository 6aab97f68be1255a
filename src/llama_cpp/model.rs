//! Models and adapters as llama.cpp holds them.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as llama;

use super::ffi;
use crate::error::{Code, Error, Result};

/// A base model in llama.cpp, on the CPU.
pub struct Model(pub(super) NonNull<llama::llama_model>);

impl Model {
    /// Loads a GGUF file.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCpp`] where llama.cpp refuses it, with the last line of its log.
    pub fn load(path: &Path) -> Result<Model> {
        start();
        let file = c_path(path)?;
        // SAFETY: the defaults are plain values; the path ends in NUL and outlives the call.
        let model = unsafe {
            let mut params = llama::llama_model_default_params();
            params.n_gpu_layers = 0;
            llama::llama_model_load_from_file(file.as_ptr(), params)
        };
        NonNull::new(model).map(Model).ok_or_else(|| failed("llama.cpp cannot load the model").file(path))
    }

    /// V
    pub fn vocab_size(&self) -> usize {
        // SAFETY: the model is loaded, and owns its vocabulary.
        let n = unsafe { llama::llama_vocab_n_tokens(llama::llama_model_get_vocab(self.0.as_ptr())) };
        usize::try_from(n).unwrap_or(0)
    }

    /// Positions that the model was trained on.
    pub fn n_positions(&self) -> usize {
        // SAFETY: the model is loaded.
        usize::try_from(unsafe { llama::llama_model_n_ctx_train(self.0.as_ptr()) }).unwrap_or(0)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: loaded by us, freed once; contexts hold the model by `Rc` and go before it.
        unsafe { llama::llama_model_free(self.0.as_ptr()) }
    }
}

/// An adapter as the drop-in holds it.
pub struct Adapter(pub(super) NonNull<ffi::AdapterHandle>);

impl Adapter {
    /// Loads a GGUF adapter and checks it against the model.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCppAdapter`] with the drop-in's reason.
    pub fn load(path: &Path, model: &Model) -> Result<Adapter> {
        let file = c_path(path)?;
        // SAFETY: the path ends in NUL, the model is loaded; both outlive the call, and the result keeps neither.
        let adapter = unsafe { ffi::ptplus_llama_load(file.as_ptr(), model.0.as_ptr()) };
        NonNull::new(adapter).map(Adapter).ok_or_else(|| refused().file(path))
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: loaded by us, freed once; contexts hold their adapters by `Rc` and go before them.
        unsafe { ffi::ptplus_llama_free(self.0.as_ptr()) }
    }
}

/// Writes `input`, a GGUF model, to `output` with every weight decoded to F32, by llama.cpp's own means.
///
/// # Errors
///
/// [`Code::LlamaCpp`].
pub fn decode_to_f32(input: &Path, output: &Path) -> Result<()> {
    requantize(input, output, llama::LLAMA_FTYPE_ALL_F32)
}

/// The same in F16, as most models are distributed.
///
/// # Errors
///
/// [`Code::LlamaCpp`].
pub fn decode_to_f16(input: &Path, output: &Path) -> Result<()> {
    requantize(input, output, llama::LLAMA_FTYPE_MOSTLY_F16)
}

fn requantize(input: &Path, output: &Path, ftype: llama::llama_ftype) -> Result<()> {
    start();
    let (from, to) = (c_path(input)?, c_path(output)?);
    // SAFETY: the paths end in NUL; the parameters are llama.cpp's defaults, which hold no pointers of ours.
    let failure = unsafe {
        let mut params = llama::llama_model_quantize_default_params();
        params.ftype = ftype;
        params.allow_requantize = true;
        llama::llama_model_quantize(from.as_ptr(), to.as_ptr(), &params)
    };
    if failure == 0 { Ok(()) } else { Err(failed("llama.cpp cannot decode the model").file(input)) }
}

/// Whether the drop-in lists the architecture.
pub(super) fn supports(architecture: &str) -> bool {
    // SAFETY: the name ends in NUL and outlives the call.
    CString::new(architecture).is_ok_and(|name| unsafe { ffi::ptplus_llama_supports(name.as_ptr()) })
}

static SHOW_LOG: AtomicBool = AtomicBool::new(false);

/// Whether llama.cpp may write its log to stderr. It is silent unless told.
pub fn show_log(show: bool) {
    SHOW_LOG.store(show, Ordering::Relaxed);
}

/// Initialises llama.cpp, once, with its log in our hands.
pub(super) fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        let sizes = (size_of::<llama::llama_context_params>(), {
            // SAFETY: no arguments.
            unsafe { ffi::ptplus_llama_context_params_size() }
        });
        assert_eq!(sizes.0, sizes.1, "bindings and headers are of one llama.cpp");
        // SAFETY: the callback is a static function that ignores its user data.
        unsafe {
            llama::llama_log_set(Some(on_log), std::ptr::null_mut());
            llama::llama_backend_init();
        }
    });
}

extern "C" fn on_log(_level: llama::ggml_log_level, text: *const c_char, _user: *mut c_void) {
    if SHOW_LOG.load(Ordering::Relaxed) && !text.is_null() {
        use std::io::Write;
        // SAFETY: llama.cpp gives a text that ends in NUL and lives for the call.
        let text = unsafe { CStr::from_ptr(text) };
        // A log that cannot be written is no failure of the work.
        let _ = std::io::stderr().write_all(text.to_bytes());
    }
}

pub(super) fn failed(message: &str) -> Error {
    Error::new(Code::LlamaCpp, message)
}

/// The drop-in's reason for its last refusal on this thread.
pub(super) fn refused() -> Error {
    // SAFETY: a static text of this thread, ending in NUL.
    let reason = unsafe { CStr::from_ptr(ffi::ptplus_llama_error()) };
    Error::new(Code::LlamaCppAdapter, reason.to_string_lossy())
}

fn c_path(path: &Path) -> Result<CString> {
    let bytes = path.as_os_str().as_encoded_bytes();
    CString::new(bytes).map_err(|_| Error::new(Code::NotFound, "expected a path without NUL").file(path))
}
