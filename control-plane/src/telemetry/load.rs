//! The load that data planes report to this replica (LRS).

use std::{fmt, time::Instant};

use super::page::{Labels, Page, number};
use crate::xds::load::{Loads, Locality, Totals};

fn of(cluster: &str, locality: &Locality) -> Labels {
    vec![("cluster", cluster.to_owned()), ("locality", locality.to_string())]
}

pub(super) fn encode(loads: &Loads, now: Instant, page: &mut Page<'_>) -> fmt::Result {
    // First, because it forgets what nobody reports any more.
    let window = loads.report(now);
    let totals = loads.totals();
    type Count = fn(&Totals) -> u64;
    let outcomes: [(&str, Count); 4] = [
        ("issued", |totals| totals.issued),
        ("succeeded", |totals| totals.succeeded),
        ("failed", |totals| totals.failed),
        ("dropped", |totals| totals.dropped),
    ];
    page.counters(
        "isthmus_load_requests",
        "Requests that data planes have reported to this replica (LRS), by their cluster, the locality that they went to, and what became of them",
        totals.iter().flat_map(|(cluster, locality, totals)| {
            outcomes.map(|(outcome, count)| {
                let mut labels = of(cluster, locality);
                labels.push(("outcome", outcome.to_owned()));
                (labels, count(totals))
            })
        }),
    )?;
    page.gauges(
        "isthmus_load_requests_in_progress",
        "Requests that were unanswered at the last report of each connected data plane",
        window.iter().map(|load| (of(&load.cluster, &load.locality), number(load.in_progress))),
    )?;
    page.gauges(
        "isthmus_load_reporters",
        "Connected data planes that have reported",
        window.iter().map(|load| (of(&load.cluster, &load.locality), number(load.reporters as u64))),
    )?;
    page.counter(
        "isthmus_load_reports_lost",
        "Reports of a cluster and locality that found no room: too many are reported",
        loads.lost(),
    )
}
