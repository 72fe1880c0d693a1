//! When a certificate is to be replaced. PURE: clock and chance are arguments.

use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::{Error, certificate_info};

/// From when to when a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Life {
    pub not_before_unix: u64,
    pub not_after_unix: u64,
}

impl Life {
    /// Of a certificate.
    ///
    /// # Errors
    /// The bytes are no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let info = certificate_info(certificate)?;
        Ok(Self { not_before_unix: info.not_before_unix, not_after_unix: info.not_after_unix })
    }

    /// When it is to be replaced: at half its life, up to a tenth of it earlier. `jitter` is drawn from 0 to 1, once
    /// for each certificate, so that those that were made together are not replaced together.
    pub fn renew_at_unix(self, jitter: f64) -> u64 {
        let life = self.not_after_unix.saturating_sub(self.not_before_unix);
        let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let early = (life as f64 / 10.0 * jitter) as u64;
        self.not_before_unix.saturating_add(life / 2).saturating_sub(early)
    }

    /// How long until then; zero if it is time.
    pub fn due_in(self, now_unix: u64, jitter: f64) -> Duration {
        Duration::from_secs(self.renew_at_unix(jitter).saturating_sub(now_unix))
    }

    /// Whether it is valid no more.
    pub fn is_over(self, now_unix: u64) -> bool {
        now_unix >= self.not_after_unix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(not_before_unix: u64, not_after_unix: u64) -> Life {
        Life { not_before_unix, not_after_unix }
    }

    #[test]
    fn renewal_is_at_half_of_the_life_or_up_to_a_tenth_earlier() {
        let secs = Duration::from_secs;
        assert_eq!(life(1000, 2000).due_in(1000, 0.0), secs(500));
        assert_eq!(life(1000, 2000).due_in(1000, 1.0), secs(400));
        assert_eq!(life(1000, 2000).due_in(1000, 7.0), secs(400));
        assert_eq!(life(1000, 2000).due_in(1900, 0.5), secs(0));
        assert_eq!(life(1000, 2000).due_in(0, f64::NAN), secs(1500));
        assert!(life(1000, 2000).is_over(2000) && !life(1000, 2000).is_over(1999));
    }

    #[test]
    fn senseless_lives_are_due_and_never_overflow() {
        assert_eq!(life(2000, 1000).due_in(5000, 0.3), Duration::ZERO);
        assert_eq!(life(0, u64::MAX).renew_at_unix(0.0), u64::MAX / 2);
        assert_eq!(life(u64::MAX, u64::MAX).renew_at_unix(1.0), u64::MAX);
    }
}
