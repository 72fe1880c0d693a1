//! A share of requests.

use rand::Rng;
use serde::Serialize;

/// `FractionalPercent`: so many of a hundred, ten thousand or a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fraction {
    /// How many.
    pub numerator: u32,
    /// Out of how many.
    pub of: u32,
}

impl Fraction {
    /// None.
    pub const NONE: Self = Self { numerator: 0, of: 100 };
    /// Every one.
    pub const ALL: Self = Self { numerator: 100, of: 100 };

    /// Whether this one is among them.
    pub fn takes(self, rng: &mut impl Rng) -> bool {
        self.numerator >= self.of || (self.numerator > 0 && rng.random_range(0..self.of) < self.numerator)
    }

    /// Whether a request with this random number is among them: the same answer wherever the same number is asked with.
    pub fn takes_ticket(self, ticket: u64) -> bool {
        ticket % u64::from(self.of.max(1)) < u64::from(self.numerator)
    }

    /// At most `numerator`, out of the same.
    pub fn at_most(self, numerator: u32) -> Self {
        Self { numerator: self.numerator.min(numerator), ..self }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn shares_are_what_they_say() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut share =
            |numerator, of| (0..10_000).filter(|_| Fraction { numerator, of }.takes(&mut rng)).count();
        assert_eq!((share(0, 100), share(100, 100), share(200, 100)), (0, 10_000, 10_000));
        assert!((2_300..2_700).contains(&share(25, 100)));
        assert!((2_300..2_700).contains(&share(250_000, 1_000_000)));
    }

    #[test]
    fn of_all_tickets_as_many_are_taken_as_it_says() {
        let share = |numerator, of| {
            (0..10_000).filter(|ticket| Fraction { numerator, of }.takes_ticket(*ticket)).count()
        };
        assert_eq!(
            (share(0, 100), share(25, 100), share(100, 100), share(200, 100)),
            (0, 2_500, 10_000, 10_000)
        );
    }
}
