//! The functions of `include/ptplus_llama.h`. Those of llama.cpp itself come from `llama_cpp_sys_2`.

use std::ffi::{c_char, c_float};

use llama_cpp_sys_2::{llama_context_params, llama_model};

/// `struct ptplus_llama_adapter`, opaque.
#[repr(C)]
pub struct AdapterHandle {
    _private: [u8; 0],
}

/// `struct ptplus_llama`, opaque.
#[repr(C)]
pub struct HookHandle {
    _private: [u8; 0],
}

unsafe extern "C" {
    pub fn ptplus_llama_load(path: *const c_char, model: *const llama_model) -> *mut AdapterHandle;
    pub fn ptplus_llama_free(adapter: *mut AdapterHandle);
    pub fn ptplus_llama_attach(params: *mut llama_context_params, adapter: *mut AdapterHandle) -> *mut HookHandle;
    pub fn ptplus_llama_set_scale(hook: *mut HookHandle, adapter: *const AdapterHandle, scale: c_float) -> bool;
    pub fn ptplus_llama_check(hook: *mut HookHandle) -> *const c_char;
    pub fn ptplus_llama_detach(hook: *mut HookHandle);
    pub fn ptplus_llama_supports(architecture: *const c_char) -> bool;
    pub fn ptplus_llama_error() -> *const c_char;
    pub fn ptplus_llama_context_params_size() -> usize;
}
