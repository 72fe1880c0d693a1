//! Load reports: messages one after the other, each behind its length, from three clients that come and go.

use std::time::{Duration, Instant};

use control_plane::xds::load::window::{LoadWindow, MAX_SERIES, WINDOW};
use xds_proto::{Message, envoy::service::load_stats::v3::LoadStatsRequest};

/// Between two reports: several share a slot of the window, and many leave it.
const PACE: Duration = Duration::from_secs(4);

pub(crate) fn load(mut bytes: &[u8]) {
    let (mut window, start) = (LoadWindow::default(), Instant::now());
    let mut now = start;
    for stream in (0..3).cycle() {
        if bytes.is_empty() {
            break;
        }
        let Ok(report) = LoadStatsRequest::decode_length_delimited(&mut bytes) else { break };
        if report.cluster_stats.is_empty() {
            window.gone(stream);
        }
        window.report_of(stream, &report.cluster_stats, now);
        now += PACE;
    }
    let report = window.report(now);
    assert!(report.len() <= MAX_SERIES, "{} series", report.len());
    assert_eq!(report.len(), window.totals().len(), "what is told is what is kept");
    for load in report {
        assert!(load.reporters <= 3 && load.requests_per_second.is_finite(), "{load:?}");
        assert!(load.totals.issued >= load.totals.succeeded.max(load.totals.failed), "{load:?}");
    }
    assert!(window.report(now + 2 * WINDOW).is_empty(), "what nobody reports any more is forgotten");
}
