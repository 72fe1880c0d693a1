//! What the figures were measured on.

use std::fs;

/// One line: processor, number of processors, memory, kernel.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split(':').nth(1)).map(|value| value.trim().to_owned())
    };
    let processor = value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown processor".into());
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let kib: u64 = value(&read("/proc/meminfo"), "MemTotal")
        .and_then(|value| value.split(' ').next()?.parse().ok())
        .unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{processor}, {count} processors, {} GiB, Linux {}", kib >> 20, kernel.trim())
}
