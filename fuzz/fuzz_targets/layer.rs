//! Layers from whoever made the image: taken or refused, within the limits, and nothing else.
#![no_main]

use banger_image::property;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _taken = property::holds(bytes);
    let _taken = property::holds(&property::sealed(bytes));
});
