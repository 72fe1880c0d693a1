//! Times as people read them.

use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// kubectl's short form: `42s`, `3m20s`, `5h`, `5h30m`, `3d4h`, `12d`.
pub(crate) fn duration(seconds: u64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86400);
    let both = |big: u64, unit: char, small: u64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => both(m, 'm', seconds % 60, 's'),
        600..10_800 => format!("{m}m"),
        10_800..28_800 => both(h, 'h', m % 60, 'm'),
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => both(d, 'd', h % 24, 'h'),
        _ => format!("{d}d"),
    }
}

/// How long ago; `<unknown>` without a time.
pub(crate) fn age(then: Option<u64>, now: u64) -> String {
    then.map_or_else(|| "<unknown>".to_owned(), |then| duration(now.saturating_sub(then)))
}

/// How long until; `expired` if that is over.
pub(crate) fn until(then: u64, now: u64) -> String {
    if then <= now { format!("expired {} ago", duration(now - then)) } else { duration(then - now) }
}

/// RFC 3339 in UTC, or the bare number if that is no time.
pub(crate) fn timestamp(unix: u64) -> String {
    i64::try_from(unix)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_else(|| unix.to_string())
}

/// `Nov 22 12:04:05.123` in UTC.
pub(crate) fn flow_time(unix_nanos: u64) -> String {
    let format =
        format_description!("[month repr:short] [day] [hour]:[minute]:[second].[subsecond digits:3]");
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_nanos))
        .ok()
        .and_then(|t| t.format(&format).ok())
        .unwrap_or_else(|| unix_nanos.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_precision_that_their_length_deserves() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (200, "3m20s"),
            (180, "3m"),
            (3600, "60m"),
            (5 * 3600 + 1800, "5h30m"),
            (86400, "24h"),
            (3 * 86400 + 4 * 3600, "3d4h"),
            (30 * 86400, "30d"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(age(None, 5), "<unknown>");
        assert_eq!(age(Some(10), 5), "0s");
        assert_eq!(until(5, 10), "expired 5s ago");
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(timestamp(1_790_000_000), "2026-09-21T14:13:20Z");
        assert_eq!(timestamp(u64::MAX), u64::MAX.to_string());
        assert_eq!(flow_time(1_790_000_000_123_456_789), "Sep 21 14:13:20.123");
    }
}
