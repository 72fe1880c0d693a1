//! Durations as people write them: `30s`, `1h30m`, `500ms`.

use std::time::Duration;

/// Longest duration that is accepted: a year.
const MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The control plane's own limit.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Parses one or more numbers with units (ms, s, m, h, d).
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration; write for instance 30s, 5m or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        total = number
            .checked_mul(milliseconds)
            .and_then(|ms| total.checked_add(Duration::from_millis(ms)))
            .filter(|total| *total <= MAX)
            .ok_or_else(|| format!("{text:?} is longer than a year"))?;
        rest = after;
    }
    if total.is_zero() { Err(format!("{text:?} is no time at all")) } else { Ok(total) }
}

/// For how long the control plane may be asked to wait for data planes.
pub(crate) fn parse_wait(text: &str) -> Result<Duration, String> {
    let wait = parse_duration(text)?;
    if wait > LONGEST_WAIT { Err(format!("{text:?} is longer than 10 minutes")) } else { Ok(wait) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
    }

    #[test]
    fn a_wait_has_an_end() {
        assert_eq!(parse_wait("10m"), Ok(LONGEST_WAIT));
        assert!(parse_wait("600001ms").is_err());
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "30", "s", "-1s", "1.5h", "1w", "0s", "9999999999999999999s", "366d", "1s 2s", "1é"]
        {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
