//! Limits that this proxy counts by itself.

use std::{sync::Arc, time::Instant};

use serde::Serialize;

use super::{Bucket, Descriptor, LimitRule};
use crate::{policy::Fraction, route::HeaderOps};

/// `LocalRateLimit`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LocalLimit {
    /// For requests that no descriptor fits, or for all of them.
    pub bucket: Option<Arc<Bucket>>,
    /// For requests with these descriptors.
    pub descriptors: Vec<DescriptorBucket>,
    /// Whether the bucket of all is asked also where a descriptor fits.
    pub always: bool,
    /// Which requests are counted.
    pub enabled: Fraction,
    /// Which of those are refused when there is no token.
    pub enforced: Fraction,
    /// HTTP status of the refusal.
    pub status: u16,
    /// For those that were not refused although there was no token.
    pub request_headers: HeaderOps,
    /// For refusals.
    pub response_headers: HeaderOps,
    /// What requests are counted as. `None`: as their routes say.
    pub rules: Option<Vec<LimitRule>>,
    /// Which rules count.
    pub stage: u32,
    /// Whether answers tell of the bucket.
    pub tell: bool,
    /// Whether refusals with 429 tell when to come again.
    pub retry_after: bool,
    /// Whether a gRPC client is told RESOURCE_EXHAUSTED.
    pub resource_exhausted: bool,
}

/// `LocalRateLimitDescriptor`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DescriptorBucket {
    /// What it is for.
    pub entries: Descriptor,
    #[allow(missing_docs)]
    pub bucket: Arc<Bucket>,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// Whether all buckets that are concerned had a token.
    pub granted: bool,
    /// The bucket that refused, or the one that has least left.
    pub bucket: Option<Arc<Bucket>>,
}

impl LocalLimit {
    /// Takes a token from each bucket that is concerned, until one has none.
    pub fn take(&self, descriptors: &[(Descriptor, Option<u64>)], now: Instant) -> Taken {
        let fits = |one: &&DescriptorBucket| descriptors.iter().find(|(d, _)| one.fits(d));
        let matching: Vec<_> = self
            .descriptors
            .iter()
            .filter_map(|one| fits(&one).map(|(_, hits)| (&one.bucket, hits.unwrap_or(1))))
            .collect();
        let general = self.bucket.as_ref().filter(|_| self.always || matching.is_empty());
        let concerned = matching.into_iter().chain(general.map(|bucket| (bucket, 1)));
        let mut least: Option<&Arc<Bucket>> = None;
        for (bucket, hits) in concerned {
            if !bucket.take(u32::try_from(hits).unwrap_or(u32::MAX), now) {
                return Taken { granted: false, bucket: Some(bucket.clone()) };
            }
            if least.is_none_or(|least| bucket.remaining(now) < least.remaining(now)) {
                least = Some(bucket);
            }
        }
        Taken { granted: true, bucket: least.cloned() }
    }
}

impl DescriptorBucket {
    fn fits(&self, descriptor: &Descriptor) -> bool {
        self.entries.len() == descriptor.len()
            && self.entries.iter().zip(descriptor).all(|(own, other)| own == other)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::limit::BucketConfig;

    fn bucket(max: u32) -> Arc<Bucket> {
        Arc::new(Bucket::new(BucketConfig { max, fill: 1, interval: Duration::from_secs(3600) }))
    }

    #[test]
    fn a_descriptor_has_its_own_bucket_beside_or_instead_of_that_of_all() {
        let entry = |value: &str| vec![("user".to_owned(), value.to_owned())];
        let limit = |always| LocalLimit {
            bucket: Some(bucket(2)),
            descriptors: vec![DescriptorBucket { entries: entry("web"), bucket: bucket(3) }],
            always,
            enabled: Fraction::ALL,
            enforced: Fraction::ALL,
            status: 429,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            rules: None,
            stage: 0,
            tell: false,
            retry_after: false,
            resource_exhausted: false,
        };
        let now = Instant::now();
        let granted = |limit: &LocalLimit, user: &str| {
            (0..10).filter(|_| limit.take(&[(entry(user), None)], now).granted).count()
        };
        let (both, instead) = (limit(true), limit(false));
        assert_eq!((granted(&both, "web"), granted(&both, "other")), (2, 0));
        assert_eq!((granted(&instead, "web"), granted(&instead, "other")), (3, 2));
        assert_eq!(both.take(&[], now), Taken { granted: false, bucket: both.bucket.clone() });
    }
}
