//! The rate of this machine's time-stamp counter.
//!
//! A guest kernel on QEMU's microvm has no timer to calibrate its TSC against; under TCG it then hangs at random while it
//! boots. TCG's TSC is the host's, so the host measures it once and the guest is told (`tsc_early_khz=`, Linux
//! Documentation/admin-guide/kernel-parameters.txt).

use std::time::{Duration, Instant};

/// kHz of the TSC against CLOCK_MONOTONIC, over 20 ms: good to a few parts in 100,000.
#[must_use]
#[expect(unsafe_code, reason = "rdtsc is an intrinsic that the compiler counts as unsafe")]
pub fn measure_khz() -> u64 {
    // SAFETY: x86-64 always has the rdtsc instruction, and Linux leaves it enabled (prctl PR_SET_TSC is per process).
    let counter = || unsafe { core::arch::x86_64::_rdtsc() };
    let (begin, begin_counter) = (Instant::now(), counter());
    let span = Duration::from_millis(20);
    while begin.elapsed() < span {
        std::hint::spin_loop();
    }
    let (elapsed, counted) = (begin.elapsed(), counter().wrapping_sub(begin_counter));
    let khz = u128::from(counted) * 1_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(khz).expect("a counter's rate in kHz is far below 2^64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_within_one_percent() {
        let (one, two) = (measure_khz(), measure_khz());
        assert!(one.abs_diff(two) < one / 100, "{one} kHz and {two} kHz");
        assert!((100_000..10_000_000).contains(&one), "{one} kHz");
    }
}
