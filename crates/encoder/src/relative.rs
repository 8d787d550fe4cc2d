//! Biases of attention by distance: learned ones, spread out, and ALiBi's slopes.

/// Spreads a `[buckets, heads]` table out over the distances −`reach`..=`reach` of a key from its
/// query: `[heads, 2 · reach + 1]`. Farther ones are in the same bucket as the last.
pub fn biases_by_distance(table: &[f32], heads: usize, reach: usize) -> Vec<f32> {
    let buckets = table.len() / heads.max(1);
    let distances = 0..2 * reach + 1;
    (0..heads)
        .flat_map(|head| distances.clone().map(move |index| (head, index)))
        .map(|(head, index)| {
            let bucket = bucket(index.abs_diff(reach), index > reach, buckets, reach);
            table[bucket * heads + head]
        })
        .collect()
}

/// The slope of a head of `heads`: powers of two, from 2^(−8 / n) on for n heads; where n is no power of two,
/// those of the next lower one, then every second of twice as many (ALiBi, arXiv:2108.12409).
///
/// ```
/// use vecmill_encoder::alibi_slope;
///
/// assert_eq!([0, 7].map(|head| alibi_slope(head, 8)), [0.5, 1.0 / 256.0]);
/// assert_eq!(alibi_slope(8, 12), 2.0_f32.powf(-0.5));
/// ```
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "heads are few, and slopes are in single precision"
)]
pub fn alibi_slope(head: usize, heads: usize) -> f32 {
    let power = 1 << heads.max(1).ilog2();
    let (step, of) =
        if head < power { (head + 1, power) } else { (2 * (head - power) + 1, 2 * power) };
    2.0_f64.powf(-8.0 * step as f64 / of as f64) as f32
}

/// T5's buckets (arXiv:1910.10683): half for keys after the query, half for those before; of each
/// half, the first half counts distances one by one and the rest grows logarithmically.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "distances are small, and the models were trained with buckets rounded in f32"
)]
fn bucket(distance: usize, after: bool, buckets: usize, max_distance: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let bucket = if distance < exact {
        distance
    } else {
        let scale = (max_distance as f32 / exact as f32).ln();
        let log = (distance as f32 / exact as f32).ln() / scale;
        (exact + (log * (half - exact) as f32) as usize).min(half - 1)
    };
    if after { half + bucket } else { bucket }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_buckets_of_their_own_and_far_ones_share() {
        let buckets: Vec<usize> = [0, 1, 7, 8, 11, 12, 64, 127, 128]
            .iter()
            .map(|&distance| bucket(distance, false, 32, 128))
            .collect();
        assert_eq!(buckets, [0, 1, 7, 8, 8, 9, 14, 15, 15]);
        assert_eq!(bucket(3, true, 32, 128), 19);
    }
}
