//! Cases of what some families have and others lack: a case for each switch of an architecture, and one
//! for each way in which such operations follow each other.

use vecmill_encoder::{AttentionBias, Backend, ValueId};
use vecmill_model::{Activation, Rotary, RotaryScaling, Window};

use super::Failure;
use super::cases::{Case, Maker, Random};
use super::run::{ACTIVATIONS, LENGTHS, Suite};

/// Sequences of more than one tile of keys, whichever way attention goes; long enough on average for the way
/// that needs long ones.
const LONG: [usize; 5] = [300, 1, 130, 0, 64];

/// Windows as families have them: near to both sides, near to one, and all before.
const WINDOWS: [Window; 4] = [
    Window { left: Some(5), right: Some(5) },
    Window { left: Some(64), right: Some(64) },
    Window { left: Some(40), right: Some(0) },
    Window { left: None, right: Some(0) },
];

impl<B: Backend> Suite<'_, B> {
    pub(super) fn switches(&self) -> Result<(), Failure> {
        self.embeddings_and_norms()?;
        self.kept_sums()?;
        self.gates()?;
        self.rotations()?;
        self.windows()?;
        layers()?.iter().try_for_each(|case| self.check(case))
    }

    /// Embeddings without positions, norms without a bias, and norms by themselves.
    fn embeddings_and_norms(&self) -> Result<(), Failure> {
        for columns in [32, 100, 384] {
            for types in [true, false] {
                let mut maker = Maker::rows(70);
                let rows = maker.embed_with(columns, false, types)?;
                maker.output(rows);
                let case = format!("embed 70×{columns} without positions, types={types}");
                self.check(&maker.case(case))?;
            }
            for bias in [true, false] {
                let mut maker = Maker::rows(70);
                let input = maker.operand(columns)?;
                let rows = maker.norm_with(input, bias)?;
                maker.output(rows);
                self.check(&maker.case(format!("normalise 70×{columns} bias={bias}")))?;
            }
        }
        Ok(())
    }

    /// Sums that others read beside the norm, which may be seen or not; and sums by themselves.
    fn kept_sums(&self) -> Result<(), Failure> {
        for columns in [32, 100, 384, 768, 1024, 1032] {
            for seen in [true, false] {
                let mut maker = Maker::rows(70);
                let (x, y) = (maker.operand(columns)?, maker.operand(columns)?);
                let first = maker.add(x, y);
                if seen {
                    maker.output(first);
                }
                let rows = maker.norm_with(first, false)?;
                maker.output(rows);
                let second = maker.add(rows, first);
                maker.output(second);
                let case = format!("add, normalise and keep the sum 70×{columns} seen={seen}");
                self.check(&maker.case(case))?;
            }
        }
        Ok(())
    }

    fn gates(&self) -> Result<(), Failure> {
        let gelu = Activation::Gelu;
        let sizes = [(1, 32, 96), (5, 48, 100), (49, 100, 7), (70, 384, 576), (40, 768, 64)];
        let sizes = sizes.map(|(rows, inputs, outputs)| (rows, inputs, outputs, gelu));
        let activations = ACTIVATIONS.map(|activation| (30, 64, 128, activation));
        // So many rows that tiles are whole, and some are not.
        let many = [(2100, 64, 96, gelu), (2100, 72, 200, Activation::Silu)];
        for (rows, inputs, outputs, activation) in sizes.into_iter().chain(activations).chain(many)
        {
            for biased in [true, false] {
                let mut maker = Maker::rows(rows);
                let input = maker.operand(inputs)?;
                let output = maker.gated_linear(input, outputs, activation, biased)?;
                maker.output(output);
                let case = format!("gated {rows}×{inputs}→{outputs} {activation:?} bias={biased}");
                self.check(&maker.case(case))?;
            }
        }
        // What reads it may want another form of it.
        for (rows, hidden, intermediate) in [(33, 64, 128), (2100, 64, 96)] {
            let mut maker = Maker::rows(rows);
            let input = maker.operand(hidden)?;
            let between = maker.gated_linear(input, intermediate, gelu, false)?;
            let output = maker.linear_add_norm(between, input)?;
            maker.output(output);
            let case = format!("gated feed forward {rows}×{hidden}→{intermediate}");
            self.check(&maker.case(case))?;
        }
        Ok(())
    }

    fn rotations(&self) -> Result<(), Failure> {
        let plain = RotaryScaling::None;
        let scaled = [
            plain,
            RotaryScaling::Linear { factor: 4.0 },
            RotaryScaling::Ntk { factor: 2.0 },
            // Sequences of both kinds are in one batch.
            RotaryScaling::DynamicNtk { factor: 2.0, trained: 100 },
        ];
        let sizes = [(3, 16, 16), (2, 64, 64), (2, 64, 32), (1, 20, 12), (1, 256, 256)];
        let cases = sizes.into_iter().map(|sizes| (sizes, plain));
        for ((heads, size, dims), scaling) in cases.chain(scaled.map(|s| ((2, 32, 32), s))) {
            for theta in [1000.0, 160_000.0] {
                let mut maker = Maker::new(&LONG, Random::new(7)).with_stray();
                let input = maker.operand(3 * heads * size)?;
                let rotary = Rotary { dims, theta, scaling };
                let turned = maker.rotate(input, heads, rotary);
                maker.output(turned);
                let case = format!("rotate {heads}×{size}, {dims} of it, θ={theta} {scaling:?}");
                self.check(&maker.case(case))?;
            }
        }
        // Where none but this reads what is turned, and the layer in front is its own.
        for (rows, heads, size) in [(33, 2, 32), (2100, 1, 64)] {
            let mut maker = Maker::rows(rows);
            let input = maker.operand(heads * size)?;
            let qkv = maker.linear(input, 3 * heads * size, Activation::Identity)?;
            let rotary = Rotary { dims: size, theta: 10_000.0, scaling: plain };
            let turned = maker.rotate(qkv, heads, rotary);
            maker.output(turned);
            self.check(&maker.case(format!("linear and rotate {rows}×{heads}×{size}")))?;
        }
        Ok(())
    }

    /// Windows, and linear biases with and without one.
    fn windows(&self) -> Result<(), Failure> {
        for (heads, size) in [(2, 16), (1, 20), (2, 64), (1, 128)] {
            for window in WINDOWS {
                self.check(&attention(&LONG, heads, size, (window, None))?)?;
            }
            for window in [Window::FULL, Window::around(9)] {
                let alibi = Some(AttentionBias::Alibi);
                self.check(&attention(&LONG, heads, size, (window, alibi))?)?;
            }
        }
        self.check(&attention(&LENGTHS, 3, 64, (Window::around(3), None))?)?;
        self.check(&attention(&[700, 300], 3, 64, (Window::around(64), None))?)
    }
}

fn attention(
    lengths: &[usize],
    heads: usize,
    size: usize,
    (window, bias): (Window, Option<AttentionBias>),
) -> Result<Case, Failure> {
    let mut maker = Maker::new(lengths, Random::new(7)).with_stray();
    let qkv = maker.operand(3 * heads * size)?;
    let output = maker.attention(qkv, heads, window, bias);
    maker.output(output);
    Ok(maker.case(format!("attention {lengths:?} {heads}×{size} {window:?} {bias:?}")))
}

/// Whole layers.
pub(super) fn layers() -> Result<Vec<Case>, Failure> {
    let both = [true, false];
    let pre = both.into_iter().map(pre_norm_layers);
    pre.chain(both.into_iter().map(rotary_gated_layer)).collect()
}

/// Two layers that normalise what they read, gated, and the norm behind the last.
fn pre_norm_layers(seen: bool) -> Result<Case, Failure> {
    let (heads, size, intermediate) = (2, 64, 192);
    let mut maker = Maker::new(&[150, 90, 3], Random::new(5));
    let mut rows = maker.operand(heads * size)?;
    for layer in 0..2 {
        let before = if layer == 0 { rows } else { maker.norm_with(rows, false)? };
        let attended = rotary_attention(&mut maker, before, (heads, size), Window::around(64))?;
        let output = maker.linear_without_bias(attended, heads * size)?;
        rows = maker.add(output, rows);
        let before = maker.norm_with(rows, false)?;
        let between = maker.gated_linear(before, intermediate, Activation::Gelu, false)?;
        let output = maker.linear_without_bias(between, heads * size)?;
        rows = maker.add(output, rows);
        if seen {
            maker.output(rows);
        }
    }
    let rows = maker.norm_with(rows, false)?;
    maker.output(rows);
    Ok(maker.case(format!("layers that normalise first, seen={seen}")))
}

/// A layer that normalises last, with rotary positions and gates.
fn rotary_gated_layer(seen: bool) -> Result<Case, Failure> {
    let (heads, size, intermediate) = (12, 64, 256);
    let mut maker = Maker::new(&[20, 9], Random::new(6));
    let rows = maker.operand(heads * size)?;
    let attended = rotary_attention(&mut maker, rows, (heads, size), Window::FULL)?;
    let rows = maker.linear_add_norm(attended, rows)?;
    if seen {
        maker.output(rows);
    }
    let between = maker.gated_linear(rows, intermediate, Activation::Silu, true)?;
    let rows = maker.linear_add_norm(between, rows)?;
    maker.output(rows);
    Ok(maker.case(format!("a layer with rotary positions and gates, seen={seen}")))
}

/// What attention reads is seen, as its bounds need exact operands.
fn rotary_attention(
    maker: &mut Maker,
    rows: ValueId,
    (heads, size): (usize, usize),
    window: Window,
) -> Result<ValueId, Failure> {
    let qkv = maker.small_linear(rows, 3 * heads * size)?;
    let rotary = Rotary { dims: size, theta: 10_000.0, scaling: RotaryScaling::None };
    let turned = maker.rotate(qkv, heads, rotary);
    maker.output(turned);
    let attended = maker.attention(turned, heads, window, None);
    Ok(maker.output(attended))
}
