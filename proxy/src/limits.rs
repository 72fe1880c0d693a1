//! Every limit and default that a resource does not set, in one place.

use std::time::Duration;

/// HTTP filters of a connection manager, and those that a route has settings for.
pub const HTTP_FILTERS: usize = 64;
/// Time for a service that filters ask, where its configuration says 0.
pub const SERVICE_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer of such a service, in bytes.
pub const SERVICE_ANSWER_BYTES: u32 = 1 << 20;
/// Largest request that a filter may be told to wait for, in bytes.
pub const BUFFERED_BYTES: u32 = 64 << 20;
/// How long keys of token issuers count (Envoy's default).
pub const JWKS_CACHE: Duration = Duration::from_secs(600);
/// After a failure keys are not asked for again for this long (Envoy's default).
pub const JWKS_PAUSE: Duration = Duration::from_secs(1);
/// Between requests for keys because a token names one that is unknown: anybody can send such a token.
pub const JWKS_UNKNOWN_KEY: Duration = Duration::from_secs(5);
/// Largest key set, in bytes.
pub const JWKS_BYTES: usize = 1 << 20;
/// Key sets that are kept.
pub const JWKS_SETS: usize = 1000;
/// Connections that one listener serves at a time. Further ones are closed at once.
pub const LISTENER_CONNECTIONS: usize = 20_000;
/// Largest request head, in bytes (Envoy's default: 60 KiB). `max_request_headers_kb` changes it.
pub const REQUEST_HEADERS_BYTES: u32 = 60 * 1024;
/// Most headers of a message (Envoy's default).
pub const HEADERS_COUNT: u32 = 100;
/// Largest response head from an upstream, in bytes.
pub const RESPONSE_HEADERS_BYTES: u32 = 60 * 1024;
/// Requests that one HTTP/2 client may have open on a connection (Envoy's default since 1.30: 1024; RFC 9113 wants at
/// least 100).
pub const H2_STREAMS: u32 = 1024;
/// Frames a second that one HTTP/2 client may send which are neither headers nor data (SETTINGS, PING, PRIORITY, RST_STREAM,
/// WINDOW_UPDATE beyond what was written, empty DATA). Then the connection is closed.
pub const H2_CONTROL_FRAMES: u64 = 10_000;
/// HTTP/2 flow control: bytes in flight of a stream.
pub const H2_STREAM_WINDOW: u32 = 1 << 20;
/// HTTP/2 flow control: bytes in flight of a connection.
pub const H2_CONNECTION_WINDOW: u32 = 4 << 20;
/// HTTP/2 pings find peers that are gone without a word.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// Time to answer one.
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A client's connection without requests is closed after this.
pub const DOWNSTREAM_IDLE: Duration = Duration::from_secs(300);
/// A pooled upstream connection without requests is closed after this: earlier than the other side would.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(60);
/// A request on which nothing moves is ended after this (Envoy's default).
pub const STREAM_IDLE: Duration = Duration::from_secs(300);
/// A tunnelled connection on which nothing moves is closed after this (Envoy's default).
pub const TCP_IDLE: Duration = Duration::from_secs(3600);
/// Time for a client to send its TLS `ClientHello` (Envoy's default of listener filters).
pub const INSPECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest `ClientHello`, in bytes (Envoy's default): post-quantum key shares need some 2 KiB.
pub const CLIENT_HELLO_BYTES: usize = 16 * 1024;
/// Time for a client to send the head of a request, from its first byte (Envoy has no default).
pub const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection that is closed is still read from, so that the client gets the last answer (Envoy's default).
pub const DELAYED_CLOSE: Duration = Duration::from_secs(1);
/// Bytes that are read from it meanwhile.
pub const DELAYED_CLOSE_BYTES: usize = 1 << 20;
/// Requests of a connection that may be reset early before it is looked at whether most are (Envoy's default): rapid reset.
pub const EARLY_RESETS: u64 = 500;
/// A request that is reset sooner than this is reset early (Envoy's default).
pub const EARLY_RESET: Duration = Duration::from_secs(1);
/// Time for a TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to connect to an upstream (Envoy's default).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's body that are kept so that it can be sent again.
pub const REPLAY_BYTES: usize = 64 * 1024;
/// Largest body of a request that is mirrored.
pub const MIRROR_BYTES: usize = 64 * 1024;
/// Connections, waiting requests and requests of a cluster (Envoy's default of each).
pub const BREAKER: u32 = 1024;
/// Retries at a time of a cluster (Envoy's default).
pub const BREAKER_RETRIES: u32 = 3;
/// Idle HTTP/1.1 connections that are kept to one endpoint.
pub const IDLE_PER_HOST: usize = 1024;
/// Requests on one upstream HTTP/2 connection before another is opened.
pub const H2_UPSTREAM_STREAMS: usize = 100;
/// Endpoints of a cluster.
pub const ENDPOINTS: usize = 100_000;
/// Waiting connections of a listening socket.
pub const BACKLOG: u32 = 1024;
/// How long connections of a changed or removed listener may go on (Envoy's default of `--drain-time-s`).
pub const LISTENER_DRAIN: Duration = Duration::from_secs(600);
/// Buffer of each direction of a tunnelled connection, in bytes.
pub const TCP_BUFFER: usize = 32 * 1024;
/// Longest method of a request by which HTTP is recognised, in bytes.
pub const METHOD_BYTES: usize = 32;
/// Addresses that one ORIGINAL_DST cluster has connections to at a time.
pub const ORIGINAL_ENDPOINTS: usize = 10_000;
