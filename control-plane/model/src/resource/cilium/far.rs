//! Peers that are neither workloads nor addresses: names, and services.

use serde::Deserialize;

use super::{
    super::{
        check,
        error::{At, Fault},
        selector::WireSelector,
    },
    CiliumService, selector,
};
use crate::policy::NamePattern;

/// `matchName` or `matchPattern`: an element of `toFQDNs` or of `rules.dns`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireName {
    match_name: Option<String>,
    match_pattern: Option<String>,
}

/// An element of `toServices`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireTarget {
    k8s_service: Option<WireNamed>,
    k8s_service_selector: Option<WireSelected>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireNamed {
    service_name: Option<String>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireSelected {
    selector: WireSelector,
    namespace: Option<String>,
}

impl WireName {
    pub(super) fn parse(self, at: &At) -> Result<NamePattern, Fault> {
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        match (said(self.match_name), said(self.match_pattern)) {
            (Some(name), None) => NamePattern::exact(&name)
                .map_err(|error| at.field("matchName").fault(&name, error.to_string())),
            (None, Some(pattern)) => NamePattern::parse(&pattern)
                .map_err(|error| at.field("matchPattern").fault(&pattern, error.to_string())),
            (Some(_), Some(_)) => at.refuse("", "must have matchName or matchPattern, not both"),
            (None, None) => at.refuse("", "must have matchName or matchPattern"),
        }
    }
}

impl WireTarget {
    /// `own` is the policy's namespace, if it has one.
    pub(super) fn parse(self, own: &str, at: &At) -> Result<CiliumService, Fault> {
        match (self.k8s_service, self.k8s_service_selector) {
            (Some(named), None) => {
                let at = at.field("k8sService");
                let at_name = at.field("serviceName");
                let name = named.service_name.ok_or_else(|| at_name.missing())?;
                check::dns_label(&name, &at_name)?;
                let namespace = namespace(named.namespace, &at)?;
                if namespace.is_none() && own.is_empty() {
                    return Err(at.field("namespace").missing());
                }
                Ok(CiliumService::Named { namespace, name })
            }
            (None, Some(selected)) => {
                let at = at.field("k8sServiceSelector");
                let labels = selector::plain(selected.selector, &at.field("selector"))?;
                Ok(CiliumService::Selected { namespace: namespace(selected.namespace, &at)?, labels })
            }
            (Some(_), Some(_)) => at.refuse("", "must have k8sService or k8sServiceSelector, not both"),
            (None, None) => at.refuse("", "must have k8sService or k8sServiceSelector"),
        }
    }
}

fn namespace(text: Option<String>, at: &At) -> Result<Option<String>, Fault> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    check::dns_label(&text, &at.field("namespace"))?;
    Ok(Some(text))
}
