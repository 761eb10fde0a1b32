//! The rate of this machine's time-stamp counter.
//!
//! A guest kernel on QEMU's microvm has no timer to calibrate its TSC against; under TCG it then hangs at random while it
//! boots. TCG's TSC is the host's, so the host measures it once and the guest is told (`tsc_early_khz=`, Linux
//! Documentation/admin-guide/kernel-parameters.txt).

use std::time::{Duration, Instant};

/// kHz of the TSC against CLOCK_MONOTONIC, over 20 ms: good to a few parts in 100,000.
#[must_use]
pub fn measure_khz() -> u64 {
    let (begin, begin_counter) = both_clocks();
    let span = Duration::from_millis(20);
    while begin.elapsed() < span {
        std::hint::spin_loop();
    }
    let (end, end_counter) = both_clocks();
    let elapsed = end.duration_since(begin).as_nanos().max(1);
    let khz = u128::from(end_counter.wrapping_sub(begin_counter)) * 1_000_000 / elapsed;
    u64::try_from(khz).expect("a counter's rate in kHz is far below 2^64")
}

/// Both clocks at one moment. On a busy machine others may run between two readings: so the closest of several counts.
fn both_clocks() -> (Instant, u64) {
    let read = || {
        let before = Instant::now();
        let counter = counter();
        let took = before.elapsed();
        (took, before + took / 2, counter)
    };
    let closest = (0..8).map(|_| read()).min_by_key(|(took, _, _)| *took);
    let (_, moment, counter) = closest.expect("it was read several times");
    (moment, counter)
}

#[expect(unsafe_code, reason = "rdtsc is an intrinsic that the compiler counts as unsafe")]
fn counter() -> u64 {
    // SAFETY: x86-64 always has the rdtsc instruction, and Linux leaves it enabled (prctl PR_SET_TSC is per process).
    unsafe { core::arch::x86_64::_rdtsc() }
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
