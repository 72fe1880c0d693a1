//! What is said of a series of measurements.

/// Which of the two is measured next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This project.
    Ours,
    /// What it is compared with.
    Baseline,
}

/// The order in which pairs are run: A B, B A, A B, …, so that a drift of the machine's speed hits both alike.
pub fn order(pairs: usize) -> impl Iterator<Item = [Side; 2]> {
    (0..pairs).map(|pair| match pair % 2 {
        0 => [Side::Ours, Side::Baseline],
        _ => [Side::Baseline, Side::Ours],
    })
}

/// The value below which a share `q` (0 to 1) of the samples lies, by linear interpolation (type 7 of Hyndman and
/// Fan, what spreadsheets call PERCENTILE). NaN for no samples.
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = q.clamp(0.0, 1.0) * last as f64;
    let (below, share) = (position.floor() as usize, position.fract());
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * share
}

/// Half of the samples are below it.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// Ours divided by the baseline, pair by pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// Median of the pairs' ratios.
    pub median: f64,
    /// Their tenth and ninetieth percentile.
    pub spread: (f64, f64),
}

/// Compares two series of equal length, measured in turn.
pub fn ratio(ours: &[f64], baseline: &[f64]) -> Ratio {
    let ratios: Vec<f64> = ours.iter().zip(baseline).map(|(a, b)| a / b).collect();
    Ratio { median: median(&ratios), spread: (quantile(&ratios, 0.1), quantile(&ratios, 0.9)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_pair_is_turned_around() {
        use Side::{Baseline as B, Ours as A};
        assert_eq!(order(3).collect::<Vec<_>>(), [[A, B], [B, A], [A, B]]);
    }

    #[test]
    fn quantiles_interpolate_between_neighbours_and_ignore_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[0.0, 10.0], 0.99), 9.9);
        assert_eq!(quantile(&[7.0], 0.1), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // The machine was twice as slow during the second pair: the ratio is the same.
        let found = ratio(&[30.0, 15.0], &[10.0, 5.0]);
        assert_eq!(found, Ratio { median: 3.0, spread: (3.0, 3.0) });
    }
}
