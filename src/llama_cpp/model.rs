//! Models and adapters as llama.cpp holds them.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as llama;

use super::ffi;
use crate::error::{Code, Error, Result};

/// A base model in llama.cpp, on the CPU.
pub struct Model {
    pub(super) pointer: NonNull<llama::llama_model>,
    /// The file, which adapters are checked against.
    path: CString,
}

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
        let pointer = NonNull::new(model).ok_or_else(|| failed("llama.cpp cannot load the model").file(path))?;
        Ok(Model { pointer, path: file })
    }

    /// V
    pub fn vocab_size(&self) -> usize {
        // SAFETY: the model is loaded, and owns its vocabulary.
        let n = unsafe { llama::llama_vocab_n_tokens(llama::llama_model_get_vocab(self.pointer.as_ptr())) };
        usize::try_from(n).unwrap_or(0)
    }

    /// Positions that the model was trained on.
    pub fn n_positions(&self) -> usize {
        // SAFETY: the model is loaded.
        usize::try_from(unsafe { llama::llama_model_n_ctx_train(self.pointer.as_ptr()) }).unwrap_or(0)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: loaded by us, freed once; contexts hold the model by `Rc` and go before it.
        unsafe { llama::llama_model_free(self.pointer.as_ptr()) }
    }
}

/// A GGUF adapter that fits a model.
pub struct Adapter(Held);

/// Who adds it to the graph.
enum Held {
    /// The graft, which reads the file again for every context that has it.
    Graft(CString),
    /// llama.cpp itself.
    Lora(Lora),
}

/// A LoRA as llama.cpp holds it, for contexts of one model.
pub(super) struct Lora {
    pointer: NonNull<llama::llama_adapter_lora>,
    /// Its own, which goes after it.
    model: Rc<Model>,
}

impl Drop for Lora {
    fn drop(&mut self) {
        // SAFETY: loaded by us, freed once, before its model, which would free it too; contexts that have it hold it.
        unsafe { llama::llama_adapter_lora_free(self.pointer.as_ptr()) }
    }
}

impl Adapter {
    /// Reads a GGUF adapter and checks it against the model.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCppAdapter`] with the graft's reason.
    pub fn load(path: &Path, model: &Model) -> Result<Adapter> {
        let file = c_path(path)?;
        Adapters::of_files(model, &[&file]).map_err(|e| e.file(path))?;
        Ok(Adapter(Held::Graft(file)))
    }

    /// Has llama.cpp read a LoRA in GGUF.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCppAdapter`] where llama.cpp refuses it.
    pub fn load_lora(path: &Path, model: &Rc<Model>) -> Result<Adapter> {
        let file = c_path(path)?;
        // SAFETY: the model is loaded; the path ends in NUL and outlives the call.
        let lora = unsafe { llama::llama_adapter_lora_init(model.pointer.as_ptr(), file.as_ptr()) };
        let refused = || Error::new(Code::LlamaCppAdapter, "llama.cpp cannot load the LoRA for this model").file(path);
        let pointer = NonNull::new(lora).ok_or_else(refused)?;
        Ok(Adapter(Held::Lora(Lora { pointer, model: model.clone() })))
    }

    /// The LoRA that llama.cpp itself adds, if it is one.
    pub(super) fn lora(&self) -> Option<&Lora> {
        match &self.0 {
            Held::Graft(_) => None,
            Held::Lora(lora) => Some(lora),
        }
    }

    /// The file that the graft reads, if it does.
    fn graft_file(&self) -> Option<&CStr> {
        match &self.0 {
            Held::Graft(file) => Some(file),
            Held::Lora(_) => None,
        }
    }
}

impl Lora {
    /// For a context of `model`.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCppAdapter`] for one that was loaded for another model.
    pub(super) fn pointer_for(&self, model: &Rc<Model>) -> Result<NonNull<llama::llama_adapter_lora>> {
        if Rc::ptr_eq(&self.model, model) {
            return Ok(self.pointer);
        }
        Err(Error::new(Code::LlamaCppAdapter, "expected a LoRA that was loaded for this model, found another's"))
    }
}

/// Adapters as the graft holds them, with a scale each.
pub(super) struct Adapters(NonNull<ffi::Handle>);

impl Adapters {
    /// Reads those of the adapters that are the graft's, for a context of the model.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCppAdapter`].
    pub(super) fn load(model: &Model, adapters: &[Rc<Adapter>]) -> Result<Adapters> {
        Adapters::of_files(model, &adapters.iter().filter_map(|a| a.graft_file()).collect::<Vec<_>>())
    }

    fn of_files(model: &Model, files: &[&CStr]) -> Result<Adapters> {
        let paths: Vec<*const c_char> = files.iter().map(|f| f.as_ptr()).collect();
        let n = c_int::try_from(paths.len()).unwrap_or(c_int::MAX);
        // SAFETY: the paths end in NUL and outlive the call, which reads `n` of them.
        let adapters = unsafe { ffi::ptplus_load(model.path.as_ptr(), paths.as_ptr(), n) };
        NonNull::new(adapters).map(Adapters).ok_or_else(|| {
            // SAFETY: a text of this thread, ending in NUL, that lives until the next call.
            let reason = unsafe { CStr::from_ptr(ffi::ptplus_error()) };
            Error::new(Code::LlamaCppAdapter, reason.to_string_lossy())
        })
    }

    /// Does `work`, during which llama.cpp builds its graphs with these adapters, or with none.
    pub(super) fn while_active<T>(adapters: Option<&Adapters>, work: impl FnOnce() -> T) -> T {
        let Some(adapters) = adapters else { return work() };
        // SAFETY: live while we borrow it, and not active any longer.
        unsafe { ffi::ptplus_activate(adapters.0.as_ptr()) };
        let result = work();
        // SAFETY: none.
        unsafe { ffi::ptplus_activate(std::ptr::null_mut()) };
        result
    }

    /// Changes the factor on adapter number `index`.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCppAdapter`] for a scale that is not finite.
    pub(super) fn set_scale(&mut self, index: usize, scale: f32) -> Result<()> {
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: live, and no decode runs while we are borrowed mutably.
        if unsafe { ffi::ptplus_set_scale(self.0.as_ptr(), index, scale) } {
            return Ok(());
        }
        Err(Error::new(Code::LlamaCppAdapter, format!("expected a finite scale, found {scale}")))
    }

    /// Whether all were applied in all their layers.
    ///
    /// # Errors
    ///
    /// [`Code::LlamaCppAdapter`].
    pub(super) fn check(&mut self) -> Result<()> {
        // SAFETY: live; the text that it returns lives until the next call.
        unsafe {
            let reason = ffi::ptplus_check(self.0.as_ptr());
            if reason.is_null() {
                return Ok(());
            }
            Err(Error::new(Code::LlamaCppAdapter, CStr::from_ptr(reason).to_string_lossy()))
        }
    }
}

impl Drop for Adapters {
    fn drop(&mut self) {
        // SAFETY: made by us, freed once, and no context uses them any more.
        unsafe { ffi::ptplus_free(self.0.as_ptr()) }
    }
}

/// Writes `input`, a GGUF model, to `output` with every weight decoded to F32, by llama.cpp's own means.
///
/// # Errors
///
/// [`Code::LlamaCpp`].
pub fn decode_to_f32(input: &Path, output: &Path) -> Result<()> {
    start();
    let (from, to) = (c_path(input)?, c_path(output)?);
    // SAFETY: the paths end in NUL; the parameters are llama.cpp's defaults, which hold no pointers of ours.
    let failure = unsafe {
        let mut params = llama::llama_model_quantize_default_params();
        params.ftype = llama::LLAMA_FTYPE_ALL_F32;
        params.allow_requantize = true;
        llama::llama_model_quantize(from.as_ptr(), to.as_ptr(), &params)
    };
    if failure == 0 { Ok(()) } else { Err(failed("llama.cpp cannot decode the model").file(input)) }
}

/// Whether the graft lists the architecture.
pub(super) fn supports(architecture: &str) -> bool {
    // SAFETY: the name ends in NUL and outlives the call.
    CString::new(architecture).is_ok_and(|name| unsafe { ffi::ptplus_supports(name.as_ptr()) })
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

pub(super) fn c_path(path: &Path) -> Result<CString> {
    let bytes = path.as_os_str().as_encoded_bytes();
    CString::new(bytes).map_err(|_| Error::new(Code::NotFound, "expected a path without NUL").file(path))
}
