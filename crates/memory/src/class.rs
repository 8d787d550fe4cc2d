//! Slab sizes: 8 steps per octave in granules of 2 MiB.
//!
//! Rounding to a class wastes at most one eighth (or one granule, where that is more), and batches
//! of similar shapes meet in the same class, so that slabs are reused instead of multiplied.

/// Slab sizes are multiples of this; it is also the granularity of GPU memory mapping.
pub(crate) const GRANULE: usize = 2 << 20;

const STEPS_PER_OCTAVE: usize = 8;

/// Classes up to 8 TiB, far past any budget.
pub(crate) const CLASSES: usize = 2 * STEPS_PER_OCTAVE + 19 * STEPS_PER_OCTAVE;

/// The smallest class that holds `bytes`, or `None` when it is past the largest.
pub(crate) fn class_of(bytes: usize) -> Option<usize> {
    let granules = bytes.div_ceil(GRANULE).max(1);
    let class = if granules <= 2 * STEPS_PER_OCTAVE {
        granules - 1 // every granule count has its own class up to 16
    } else {
        // (mantissa + 8) << shift covers `granules`, with the mantissa in 0..8.
        let shift = (granules - 1).ilog2() as usize - 3;
        let mantissa = ((granules - 1) >> shift) - STEPS_PER_OCTAVE;
        (shift + 1) * STEPS_PER_OCTAVE + mantissa
    };
    (class < CLASSES).then_some(class)
}

/// The size in bytes of the slabs of `class`.
pub(crate) fn class_bytes(class: usize) -> usize {
    let granules = if class < 2 * STEPS_PER_OCTAVE {
        class + 1
    } else {
        let shift = class / STEPS_PER_OCTAVE - 1;
        (class % STEPS_PER_OCTAVE + STEPS_PER_OCTAVE + 1) << shift
    };
    granules * GRANULE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_ascend_and_hold_themselves() {
        for class in 0..CLASSES {
            assert_eq!(class_of(class_bytes(class)), Some(class));
            if class > 0 {
                let below = class_bytes(class - 1);
                assert!(below < class_bytes(class));
                assert_eq!(class_of(below + 1), Some(class), "one byte more is the next class");
            }
        }
        assert_eq!(class_of(class_bytes(CLASSES - 1) + 1), None);
    }

    #[test]
    fn rounding_wastes_at_most_an_eighth_or_a_granule() {
        let mut bytes = 1;
        while let Some(class) = class_of(bytes) {
            let waste = class_bytes(class) - bytes;
            assert!(waste <= (bytes / 8).max(GRANULE), "{bytes} bytes waste {waste}");
            bytes = bytes * 17 / 16 + 1;
        }
    }
}
