//! Shares of requests. There is no runtime here that a key could name a value in: the default counts.

use xds_proto::envoy::{
    config::core::v3::RuntimeFractionalPercent,
    r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
};

use crate::{
    config::{error::Path, wire::Result},
    policy::Fraction,
};

pub(in crate::config) fn convert(path: &Path<'_>, wire: FractionalPercent) -> Result<Fraction> {
    let FractionalPercent { numerator, denominator } = wire;
    let of = match DenominatorType::try_from(denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(path.field("denominator").invalid(denominator, "is unknown")),
    };
    Ok(Fraction { numerator, of })
}

pub(super) fn or(
    path: &Path<'_>,
    wire: Option<RuntimeFractionalPercent>,
    default: Fraction,
) -> Result<Fraction> {
    let Some(RuntimeFractionalPercent { default_value, runtime_key: _ }) = wire else { return Ok(default) };
    match default_value {
        None => Ok(Fraction::NONE),
        Some(wire) => convert(&path.field("default_value"), wire),
    }
}
