//! What a lowering must get right without a device.

use vecmill_encoder::Shape;
use vecmill_encoder::{Lower, Prepared, Program, RowBound};
use vecmill_model::Activation;

use super::Failure;
use super::cases::{Case, Maker, Random};
use super::run::random;
use super::switches::layers;

/// Random graphs that are tried.
const GRAPHS: u64 = 40;

/// Checks programs of random graphs, of layers as newer families have them, and of a feed-forward block as
/// wide as a real model's, for many pairs of shapes:
///
/// - all that is read was written, and has bytes;
/// - with fewer rows and the same kernels no step needs more scratch, and no value more room;
/// - none takes more memory than the program that is for up to as many rows.
///
/// # Errors
/// [`Failure::Program`] says what is wrong with which.
pub fn lowering<L: Lower>(lower: &L) -> Result<(), Failure> {
    let mut cases = (0..GRAPHS).map(random).collect::<Result<Vec<_>, _>>()?;
    cases.extend(layers()?);
    for (hidden, intermediate) in [(384, 1536), (768, 3072), (1024, 4096)] {
        let mut maker = Maker::new(&[4, 3], Random::new(1));
        let input = maker.operand(hidden)?;
        let attended = maker.linear_add_norm(input, input)?;
        let output = maker.feed_forward(attended, intermediate, Activation::Gelu)?;
        maker.output(output);
        cases.push(maker.case(format!("block of {hidden} columns")));
    }
    let mut random = Random::new(3);
    for case in &cases {
        for _ in 0..GRAPHS {
            let tokens = random.one(&[1, 20, 333, 2500, 8192, 9000, 17_000, 33_000]);
            let few = (tokens / random.one(&[1, 2, 3, 17])).max(1);
            let shape = |tokens| Shape { tokens, sequences: tokens, longest: tokens.min(512) };
            check(lower, case, shape(few), shape(tokens))?;
        }
    }
    Ok(())
}

fn check<L: Lower>(lower: &L, case: &Case, few: Shape, many: Shape) -> Result<(), Failure> {
    let wrong = |what: &str| {
        Err(Failure::Program(format!("{} for {few:?} and {many:?}: {what}", case.name)))
    };
    let programs = |bound: fn(Shape) -> RowBound| {
        [few, many].map(|shape| lower.lower(&case.graph, bound(shape)))
    };
    let mut peaks = Vec::new();
    for [few, many] in [programs(RowBound::Bucket), programs(RowBound::UpTo)] {
        for program in [&few, &many] {
            if let Some(what) = defect(program) {
                return wrong(&what);
            }
        }
        let steps = || few.steps().iter().zip(many.steps());
        let alike = few.steps().len() == many.steps().len()
            && steps().all(|(few, many)| few.kernel == many.kernel);
        if alike && steps().any(|(few, many)| few.scratch > many.scratch) {
            return wrong("fewer rows need more scratch");
        }
        let [few, many] = [few, many].map(Prepared::of);
        let buffers = few.plan().buffers().iter().zip(many.plan().buffers());
        let same = few.plan().buffers().len() == many.plan().buffers().len();
        if alike && same && buffers.into_iter().any(|(few, many)| few.bytes > many.bytes) {
            return wrong("fewer rows need more room");
        }
        peaks.push([few, many].map(|prepared| prepared.plan().peak_bytes()));
    }
    if (0..2).any(|shape| peaks[0][shape] > peaks[1][shape]) {
        return wrong("the program that takes most memory takes less than another");
    }
    Ok(())
}

/// What can't be run of a program.
fn defect<K>(program: &Program<K>) -> Option<String> {
    let mut written = Vec::new();
    for (index, step) in program.steps().iter().enumerate() {
        let changed = |value| step.writes.contains(value);
        let unwritten = step.reads.iter().find(|read| !written.contains(*read) && !changed(*read));
        if let Some(value) = unwritten {
            return Some(format!("step {index} reads {value:?}, which none has written"));
        }
        written.extend(step.writes.iter().copied());
        let mut all = step.reads.iter().chain(&step.writes);
        if let Some(value) = all.find(|value| program.planes(**value).planes.is_empty()) {
            return Some(format!("{value:?} of step {index} has no planes"));
        }
    }
    let lost = program.outputs().find(|output| !written.contains(output))?;
    Some(format!("the output {lost:?} is not written"))
}
