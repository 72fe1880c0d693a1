//! What the kernel knows of this process, under the names that every Prometheus client uses.

use std::fmt;

use crate::page::{Page, number};

/// Clock ticks a second: `USER_HZ`, 100 on every Linux that we run on.
const TICKS: f64 = 100.0;
/// Bytes of a page of memory.
const PAGE: u64 = 4_096;

/// Of `/proc/self`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Process {
    cpu_seconds: f64,
    threads: u64,
    virtual_bytes: u64,
    resident_bytes: u64,
    started_ticks: u64,
    boot_unix: u64,
    open_files: u64,
    max_files: u64,
}

impl Process {
    /// As it is now. What can't be read is zero.
    pub fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
        Self::parse(&text("/proc/self/stat"), &text("/proc/self/limits"), &text("/proc/stat"), files)
    }

    fn parse(stat: &str, limits: &str, machine: &str, open_files: u64) -> Self {
        // The second field is the name in parentheses, which may hold anything; the third one follows it.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        // Numbered as in proc_pid_stat(5).
        let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        let max_files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let boot = machine.lines().find_map(|line| line.strip_prefix("btime "));
        Self {
            cpu_seconds: (field(14) + field(15)) as f64 / TICKS,
            threads: field(20),
            started_ticks: field(22),
            virtual_bytes: field(23),
            resident_bytes: field(24) * PAGE,
            boot_unix: boot.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
            open_files,
            max_files: max_files.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0),
        }
    }

    /// Writes it down.
    ///
    /// # Errors
    /// The page is full.
    pub fn encode(&self, page: &mut Page<'_>) -> fmt::Result {
        let started = number(self.boot_unix) + self.started_ticks as f64 / TICKS;
        page.seconds("process_cpu_seconds", "User and system time of the process", self.cpu_seconds)?;
        page.gauge("process_resident_memory_bytes", "Memory in RAM", number(self.resident_bytes))?;
        page.gauge("process_virtual_memory_bytes", "Memory addressed", number(self.virtual_bytes))?;
        page.gauge("process_open_fds", "Open file descriptors", number(self.open_files))?;
        page.gauge("process_max_fds", "File descriptors that may be open", number(self.max_files))?;
        page.gauge("process_threads", "Threads", number(self.threads))?;
        page.gauge("process_start_time_seconds", "When the process started, in seconds since 1970", started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let mut fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        fields[0] = "S".to_owned();
        let stat = format!("7 (a) b (c) {}\n", fields.join(" "));
        let process =
            Process::parse(&stat, "Max open files            1024      4096   files", "btime 99\n", 5);
        assert_eq!((process.cpu_seconds, process.threads, process.started_ticks), (0.29, 20, 22));
        assert_eq!((process.virtual_bytes, process.resident_bytes), (23, 24 * PAGE));
        assert_eq!((process.max_files, process.boot_unix, process.open_files), (1024, 99, 5));
        assert_eq!(Process::parse("", "", "", 0), Process::default());
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let process = Process::read();
        assert!(process.resident_bytes > 0 && process.open_files > 0 && process.max_files > 0, "{process:?}");
    }
}
