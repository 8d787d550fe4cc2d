//! Timing algorithms on the device, to choose better than by the library's estimate.
//!
//! The choice behind it: all candidates run once, and only those not far behind run again. Times
//! that are almost the same say nothing: then the library's order counts.

use std::time::Duration;

use super::choose::Key;
use super::{Choice, Gemm, GemmError, Linear, State, run, to_run};
use crate::driver::cublaslt::MatmulError;
use crate::stopwatch;
use crate::stream::CudaStream;

/// How often those who are not far behind run.
const ROUNDS: usize = 3;

/// What tuning found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuned {
    /// How many algorithms ran.
    pub candidates: usize,
    /// The time of a product by the algorithm that the library takes for the fastest.
    pub estimated: Duration,
    /// The time of a product by the one that is used from now on.
    pub best: Duration,
}

impl Gemm {
    /// Times the algorithms for this product, and uses the fastest for its range from now on. The
    /// output is overwritten many times; what it contains afterwards is undefined. Takes some
    /// hundred times as long as the product itself, and other products wait meanwhile.
    ///
    /// # Errors
    /// As [`multiply`](Self::multiply).
    pub fn tune(&self, stream: &CudaStream, linear: &Linear<'_>) -> Result<Tuned, GemmError> {
        self.validate(linear)?;
        let mut state = self.state();
        let State { library, algorithms } = &mut *state;
        let (function, candidates) = self.candidates(library, linear)?;
        let product = library.product(&to_run(linear, function))?;

        let times = race(candidates.len(), |index| {
            let algorithm = &candidates[index].algorithm;
            match run(library, stream, linear, &product, algorithm) {
                Ok(()) => {}
                // Proposed, and yet refused: it is out of the race.
                Err(MatmulError::Library(_)) => return Ok(None),
                Err(error) => return Err(GemmError::from(error)),
            }
            let work = || Ok(run(library, stream, linear, &product, algorithm)?);
            stopwatch::each(&self.device, stream, GemmError::from, work).map(Some)
        })?;
        let best = fastest(&times).ok_or_else(|| linear.no_algorithm())?;
        algorithms
            .keep(Key::of(linear), Choice { function, algorithm: candidates[best.0].algorithm });
        let estimated = times.iter().copied().flatten().next().unwrap_or(best.1);
        Ok(Tuned { candidates: times.iter().flatten().count(), estimated, best: best.1 })
    }
}

/// The shortest time of each runner: of one round, and of all rounds for those who were at most a
/// quarter behind. `None` for those who fell out.
fn race<E>(
    runners: usize,
    mut time: impl FnMut(usize) -> Result<Option<Duration>, E>,
) -> Result<Vec<Option<Duration>>, E> {
    let mut times = (0..runners).map(&mut time).collect::<Result<Vec<_>, E>>()?;
    for _ in 1..ROUNDS {
        let Some(best) = times.iter().flatten().min().copied() else {
            break;
        };
        for (runner, shortest) in times.iter_mut().enumerate() {
            if shortest.is_some_and(|shortest| shortest <= best * 5 / 4) {
                *shortest = time(runner)?.min(*shortest).or(*shortest);
            }
        }
    }
    Ok(times)
}

/// The first whose time is at most a fiftieth behind the shortest, and its time.
fn fastest(times: &[Option<Duration>]) -> Option<(usize, Duration)> {
    let shortest = *times.iter().flatten().min()?;
    let times = times.iter().enumerate().filter_map(|(index, time)| Some((index, (*time)?)));
    times.into_iter().find(|(_, time)| *time <= shortest * 51 / 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn microseconds(time: u64) -> Option<Duration> {
        Some(Duration::from_micros(time))
    }

    #[test]
    fn only_the_fast_run_again() {
        let mut runs = [0; 4];
        let times = race(4, |runner| {
            runs[runner] += 1;
            let time = [microseconds(100), microseconds(120), microseconds(200), None][runner];
            Ok::<_, ()>(time.map(|time| time + Duration::from_micros(3 - runs[runner])))
        });
        assert_eq!(runs, [3, 3, 1, 1]);
        let expected = [microseconds(100), microseconds(120), microseconds(202), None];
        assert_eq!(times.unwrap(), expected);
    }

    #[test]
    fn almost_the_same_is_the_same() {
        let times = [microseconds(150), None, microseconds(101), microseconds(100)];
        assert_eq!(fastest(&times), Some((2, Duration::from_micros(101))));
        assert_eq!(fastest(&[microseconds(103), microseconds(100)]).unwrap().0, 1);
        assert_eq!(fastest(&[None]), None);
    }

    #[test]
    fn a_lost_device_ends_the_race() {
        assert_eq!(race(3, |_| Err("lost")), Err("lost"));
        assert_eq!(race(2, |_| Ok::<_, ()>(None)), Ok(vec![None, None]));
    }
}
