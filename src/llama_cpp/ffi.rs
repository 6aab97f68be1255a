//! The functions of `include/ptplus.h`. Those of llama.cpp itself come from `llama_cpp_sys_2`.

use std::ffi::{c_char, c_float, c_int};

/// `struct ptplus`, opaque: adapters with a scale each.
#[repr(C)]
pub struct Handle {
    _private: [u8; 0],
}

unsafe extern "C" {
    pub fn ptplus_load(model: *const c_char, paths: *const *const c_char, n: c_int) -> *mut Handle;
    pub fn ptplus_activate(adapters: *mut Handle);
    pub fn ptplus_set_scale(adapters: *mut Handle, index: c_int, scale: c_float) -> bool;
    pub fn ptplus_check(adapters: *mut Handle) -> *const c_char;
    pub fn ptplus_free(adapters: *mut Handle);
    pub fn ptplus_supports(architecture: *const c_char) -> bool;
    pub fn ptplus_error() -> *const c_char;
}
