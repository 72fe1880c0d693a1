//! Log lines: to stderr, as text or JSON, by `RUST_LOG` or the default. Every line about a change names its revision.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::config::LogFormat;

/// Unless `RUST_LOG` says otherwise: what libraries repeat is left out.
const DEFAULT_FILTER: &str = "info,openraft=error,h2=warn,hyper=warn,sled=warn,tower=warn";

/// Logs to stderr from now on.
pub fn to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let colour = std::io::stderr().is_terminal();
    let installed =
        tracing::subscriber::set_global_default(subscriber(format, filter, colour, std::io::stderr));
    if installed.is_err() {
        eprintln!("control-plane: logging was set up twice");
    }
}

/// The one place that decides how a line looks.
pub fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    colour: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour && format == LogFormat::Text)
        .with_writer(writer);
    match format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}
