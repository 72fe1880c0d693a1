//! Durations as the Gateway API writes them (GEP-2257): `1h30m`, `500ms`; no fractions, no signs.

use super::error::{At, Fault};

/// The milliseconds of a duration that stands by itself, on a command line for instance.
pub fn milliseconds(text: &str) -> Option<u64> {
    parse(text, &At::new("duration")).ok()
}

/// Milliseconds.
pub(super) fn parse(text: &str, at: &At) -> Result<u64, Fault> {
    let bad = || at.fault(text, "must be a duration such as 10s, 1m30s or 500ms (units h, m, s, ms)");
    let mut rest = text;
    let mut total = 0_u64;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at(digits);
        let length = if unit.starts_with("ms") { 2 } else { 1 };
        let factor = match unit.get(..length) {
            Some("ms") => 1,
            Some("s") => 1_000,
            Some("m") => 60_000,
            Some("h") => 3_600_000,
            _ => return Err(bad()),
        };
        parts += 1;
        if parts > 4 || digits == 0 || digits > 5 {
            return Err(bad());
        }
        total += number.parse::<u64>().map_err(|_| bad())? * factor;
        rest = &unit[length..];
    }
    if parts == 0 { Err(bad()) } else { Ok(total) }
}

/// The canonical text: largest units first.
pub(super) fn render(mut ms: u64) -> String {
    let mut out = String::new();
    for (unit, factor) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        let n = ms / factor;
        if n > 0 {
            out.push_str(&format!("{n}{unit}"));
            ms %= factor;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_gep_2257_writes_them() {
        let at = At::new("x");
        for (text, ms) in [("0s", 0), ("500ms", 500), ("1m30s", 90_000), ("1h", 3_600_000), ("1s1ms", 1_001)]
        {
            assert_eq!(parse(text, &at).unwrap(), ms, "{text}");
            assert_eq!(parse(&render(ms), &at).unwrap(), ms, "{text}");
        }
        for bad in ["", "1", "1.5s", "-1s", "123456s", "1d", "1s1s1s1s1s", "s", "1µs"] {
            assert!(parse(bad, &at).is_err(), "{bad}");
        }
    }
}
