//! Metrics as they are written down: a name, a sentence, and a value for each set of labels.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::MetricType,
};

/// Names and values of labels.
pub type Labels = Vec<(&'static str, String)>;

/// Where metrics are written to.
#[derive(Debug)]
pub struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl<'a> Page<'a> {
    /// An empty one.
    pub fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self { encoder }
    }

    /// A value that goes up and down.
    ///
    /// # Errors
    /// The page is full; as with all that follow.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Into<f64>) -> fmt::Result {
        self.gauges(name, help, [(Labels::new(), value.into())])
    }

    /// Values that go up and down.
    ///
    /// # Errors
    /// See [`Page::gauge`].
    pub fn gauges(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                metric.encode_gauge(&value)?;
            } else {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// A value that only goes up. Its name is given without `_total`.
    ///
    /// # Errors
    /// See [`Page::gauge`].
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [(Labels::new(), value)])
    }

    /// Seconds that only become more. Its name is given without `_total`.
    ///
    /// # Errors
    /// See [`Page::gauge`].
    pub fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, f64, f64>(&value, None)
    }

    /// Values that only go up.
    ///
    /// # Errors
    /// See [`Page::gauge`].
    pub fn counters(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
            } else {
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
            }
        }
        Ok(())
    }

    /// A distribution.
    ///
    /// # Errors
    /// See [`Page::gauge`].
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &impl EncodeMetric) -> fmt::Result {
        histogram.encode(self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)
    }
}

/// One label.
pub fn label(name: &'static str, value: impl Into<String>) -> Labels {
    vec![(name, value.into())]
}

/// Revisions, indices and counts are exact up to 2^53.
pub fn number(value: u64) -> f64 {
    value as f64
}
