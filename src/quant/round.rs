//! What the formats with one scale for 32 elements have in common: the scalar reference.

/// Smallest and largest element, the first of several that are equal (0 and -0 are).
pub fn min_max(x: &[f32; 32]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, f32::MIN);
    for &x in x {
        if x < min {
            min = x;
        }
        if x > max {
            max = x;
        }
    }
    (min, max)
}

/// The largest magnitude.
pub fn magnitude(x: &[f32; 32]) -> f32 {
    x.iter().fold(0f32, |a, x| if x.abs() > a { x.abs() } else { a })
}

/// `1 / d`, or `None` where rounding with it has no meaning: `d` or its reciprocal overflows.
///
/// ggml then converts NaN or infinity to an integer, which on x86-64 leaves 0 in every code. 0 for `d` = 0.
#[inline(always)]
pub fn reciprocal(d: f32) -> Option<f32> {
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    (d.is_finite() && id.is_finite()).then_some(id)
}

/// `(x - min) * id + half`, cut off to an integer; the result must be 0 to 255.
pub fn codes(x: &[f32; 32], min: f32, id: f32, half: f32) -> [u8; 32] {
    x.map(|x| ((x - min) * id + half) as u8)
}

/// `x * id`, halves away from zero; the result must be -128 to 127.
pub fn signed_codes(x: &[f32; 32], id: f32) -> [i8; 32] {
    x.map(|x| (x * id).round() as i8)
}
