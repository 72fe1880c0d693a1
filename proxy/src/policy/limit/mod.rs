//! How many requests are let through: what they are counted as, and buckets of tokens.

mod bucket;
mod descriptor;
mod global;
mod local;

pub use bucket::{Bucket, BucketConfig};
pub use descriptor::{Descriptor, DescriptorAction, LimitRule, RouteLimits, Subject, descriptors};
pub use global::{GlobalLimit, GlobalRoute};
pub use local::{DescriptorBucket, LocalLimit, Taken};
