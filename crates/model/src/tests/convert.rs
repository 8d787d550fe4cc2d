//! Conversion: rounding as IEEE 754 says, files that this and other readers take, refusals.

use super::*;
use crate::{ConvertError, Rounding, Weights};

/// A model's weights with `values` as a matrix of one row.
fn weights(values: &[f32]) -> (TempDir, Weights) {
    let header = json!({"w": entry("F32", &[1, values.len()], [0, 4 * values.len()])}).to_string();
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let folder = TempDir::new().unwrap();
    write(&folder, "model.safetensors", &container(header.as_bytes(), &data));
    let weights = Weights::open(folder.path()).unwrap();
    (folder, weights)
}

/// What the file of `weights` in `format` says, and the number that was changed most.
fn converted(weights: &Weights, format: DType) -> (TempDir, Weights, Option<Rounding>) {
    let mut file = Vec::new();
    let rounding = weights.write_as(format, &mut file, &|_| {}).unwrap();
    let folder = TempDir::new().unwrap();
    write(&folder, "model.safetensors", &file);
    let weights = Weights::open(folder.path()).unwrap();
    (folder, weights, rounding)
}

/// The bits of each number in `format`.
fn bits(values: &[f32], format: DType) -> Vec<u16> {
    let (_before, weights) = weights(values);
    let (_after, weights, _) = converted(&weights, format);
    let tensor = weights.tensor("w", &[1, values.len()]).unwrap();
    assert_eq!(tensor.dtype(), format);
    tensor.bytes().as_chunks().0.iter().map(|&number| u16::from_le_bytes(number)).collect()
}

/// The value of bits with so many for the exponent and the fraction, by the standard's definition.
fn value(bits: u16, exponent: u32, fraction: u32) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let bias = (1 << (exponent - 1)) - 1;
    let stored = i32::from(bits >> fraction) & ((1 << exponent) - 1);
    let part = f64::from(bits & ((1 << fraction) - 1)) / f64::from(1 << fraction);
    let (whole, power) = if stored == 0 { (0.0, 1 - bias) } else { (1.0, stored - bias) };
    sign * (whole + part) * 2f64.powi(power)
}

#[test]
fn halves_are_rounded_to_even() {
    let ulp = 2f32.powi(-10);
    let smallest = 2f32.powi(-24);
    let cases = [
        (1.0 + ulp / 2.0, 0x3c00),
        (1.0 + 1.5 * ulp, 0x3c02),
        (1.0 + 0.5001 * ulp, 0x3c01),
        (-1.0 - 1.5 * ulp, 0xbc02),
        (2049.0, 0x6800),
        (2051.0, 0x6802),
        (65504.0, 0x7bff),
        (65519.99, 0x7bff),
        (smallest, 0x0001),
        (smallest / 2.0, 0x0000),
        (smallest * 0.75, 0x0001),
        (smallest * 1.5, 0x0002),
        (-1e-30, 0x8000),
    ];
    let (values, expected): (Vec<f32>, Vec<u16>) = cases.into_iter().unzip();
    assert_eq!(bits(&values, DType::F16), expected);

    let ulp = 2f32.powi(-7);
    let cases = [
        (1.0 + ulp / 2.0, 0x3f80),
        (1.0 + 1.5 * ulp, 0x3f82),
        (1.0 + 0.5001 * ulp, 0x3f81),
        (70_000.0, 0x4789),
        (3.38e38, 0x7f7e),
        (-0.0, 0x8000),
    ];
    let (values, expected): (Vec<f32>, Vec<u16>) = cases.into_iter().unzip();
    assert_eq!(bits(&values, DType::BF16), expected);
}

proptest! {
    #[test]
    fn no_neighbour_is_nearer(values in prop::collection::vec(-65504f32..=65504.0, 1..40), small in 0..40i32) {
        let values: Vec<f32> = values.iter().map(|value| value * 2f32.powi(-small)).collect();
        for (format, exponent, fraction) in [(DType::F16, 5, 10), (DType::BF16, 8, 7)] {
            for (&from, bits) in values.iter().zip(bits(&values, format)) {
                let off = |bits| (value(bits, exponent, fraction) - f64::from(from)).abs();
                let magnitude = bits & 0x7fff;
                let below = bits - u16::from(magnitude > 0);
                let nearest = off(bits) <= off(below) && off(bits) <= off(bits + 1);
                let tie = off(bits) == off(below).min(off(bits + 1)) && magnitude > 0;
                prop_assert!(nearest && (!tie || bits & 1 == 0), "{from} in {format:?}: {bits:#x}");
            }
        }
    }
}

#[test]
fn all_that_a_folder_stores_is_written() {
    let folder = folder();
    let before = Weights::open(folder.path()).unwrap();
    let (after_folder, after, rounding) = converted(&before, DType::F16);
    assert_eq!(rounding, None, "small whole numbers stay what they are");
    let words = after.tensor("embeddings.word_embeddings.weight", &[6, 4]).unwrap();
    let (gain, bias) = after.norm("embeddings.LayerNorm", 4).unwrap();
    let (old_gain, old_bias) = before.norm("embeddings.LayerNorm", 4).unwrap();
    assert_eq!((words.dtype(), gain.dtype(), bias.dtype()), (DType::F16, DType::F32, DType::F32));
    assert_eq!(words.to_f32()[23], 23.0);
    assert_eq!((gain.to_f32(), bias.to_f32()), (old_gain.to_f32(), old_bias.to_f32()));
    assert_eq!(before.stored_bytes() - after.stored_bytes(), 96 - 48 - 8 - 8);

    let file = fs::read(after_folder.path().join("model.safetensors")).unwrap();
    let theirs = ::safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(theirs.names().len(), 4);
    let ids = theirs.tensor("embeddings.position_ids").unwrap();
    assert_eq!((ids.dtype(), ids.data()), (::safetensors::Dtype::I64, &[0; 16][..]));
}

#[test]
fn progress_ends_with_all_bytes_and_the_largest_error_is_found() {
    // More than one piece; the largest error is in the middle.
    let mut values = vec![0.1f32; 100_000];
    values[70_000] = 1000.3;
    let (_folder, weights) = weights(&values);
    let seen = std::cell::RefCell::new(Vec::new());
    let progress = |bytes| seen.borrow_mut().push(bytes);
    let rounding = weights.write_as(DType::F16, &mut Vec::new(), &progress).unwrap().unwrap();
    assert_eq!((rounding.tensor.as_str(), rounding.from, rounding.to), ("w", 1000.3, 1000.5));
    assert!((rounding.error() - 0.2).abs() < 1e-4);
    let seen = seen.into_inner();
    assert!(seen.len() > 1 && seen.is_sorted());
    assert_eq!(seen.last(), Some(&weights.stored_bytes()));
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    for (value, format, advice) in [
        (65520.0, DType::F16, "bfloat16"),
        (-1e30, DType::F16, "bfloat16"),
        (f32::MAX, DType::BF16, "float32"),
        (f32::INFINITY, DType::F32, "broken"),
        (f32::NAN, DType::BF16, "broken"),
    ] {
        let (_folder, weights) = weights(&[0.0, value]);
        let error = weights.write_as(format, &mut Vec::new(), &|_| {}).unwrap_err();
        assert!(matches!(&error, ConvertError::OutOfRange { tensor, .. } if tensor == "w"));
        assert!(error.to_string().contains(advice), "{error}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let (_folder, weights) = weights(&[1.0; 100]);
    let mut full = [0; 32];
    let error = weights.write_as(DType::F16, &mut &mut full[..], &|_| {}).unwrap_err();
    assert!(matches!(error, ConvertError::Write(_)), "{error}");
}
