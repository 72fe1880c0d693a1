//! Builds the kernel programs (`ebpf/`) and leaves them in OUT_DIR for `src/kernel/object.rs` to embed.
//!
//! They are compiled for another target, which needs a core library for BPF and bpf-linker. In order:
//! 1. `ISTHMUS_EBPF_OBJECT`: an object that was built before;
//! 2. a rustc that comes with a BPF core: `ISTHMUS_BPF_RUSTC`, else /usr/bin/rustc (Debian's rustc-web);
//! 3. rustup's nightly with rust-src.
//!
//! `SKIP_EBPF=1` embeds nothing: the agent then says so when it is to load its programs.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const HINT: &str = "run `make setup`, or by hand: \
     `apt-get install rustc-web libstd-rust-web-dev-bpf` (or `rustup toolchain install nightly --component \
     rust-src`) and `cargo install bpf-linker --version 0.13.0`; or set ISTHMUS_EBPF_OBJECT to an object that \
     was built elsewhere, or SKIP_EBPF=1 to do without";

fn main() {
    for name in ["ISTHMUS_EBPF_OBJECT", "ISTHMUS_BPF_RUSTC", "SKIP_EBPF"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let object = path_of("OUT_DIR").join("isthmus-ebpf.o");
    if let Err(problem) = provide(&object) {
        println!("cargo::error=the kernel programs can't be built: {problem}; {HINT}");
        std::process::exit(1);
    }
}

fn provide(object: &Path) -> Result<(), String> {
    if env::var_os("SKIP_EBPF").is_some_and(|value| value == "1") {
        return fs::write(object, []).map_err(|error| format!("{}: {error}", object.display()));
    }
    if let Some(prebuilt) = env::var_os("ISTHMUS_EBPF_OBJECT") {
        println!("cargo::rerun-if-changed={}", Path::new(&prebuilt).display());
        return copy(Path::new(&prebuilt), object);
    }
    let crate_dir = path_of("CARGO_MANIFEST_DIR");
    for source in
        ["ebpf/src", "ebpf/Cargo.toml", "ebpf/Cargo.lock", "ebpf-shared/src", "ebpf-shared/Cargo.toml"]
    {
        println!("cargo::rerun-if-changed={}", crate_dir.join(source).display());
    }
    build(&crate_dir, object)
}

fn build(crate_dir: &Path, object: &Path) -> Result<(), String> {
    let linker = find_linker(crate_dir)?;
    let compiler = Compiler::find()?;
    // Below OUT_DIR, so that this build doesn't wait for the lock of the one that it is a part of.
    let target_dir = path_of("OUT_DIR").join("ebpf");
    let mut command = compiler.cargo();
    // What was set for the outer build is for another target.
    for (name, _) in env::vars_os() {
        if is_of_outer_build(&name) {
            command.env_remove(name);
        }
    }
    compiler.configure(&mut command);
    let flags = ["-Cdebuginfo=2", &format!("-Clinker={}", linker.display()), "-Clink-arg=--btf"];
    command
        .args(["build", "--release", "--locked", "--target", TARGET])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_DIR", &target_dir)
        .current_dir(crate_dir.join("ebpf"));
    let output = command.output().map_err(|error| format!("cargo does not start: {error}"))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        let last = String::from_utf8_lossy(&output.stderr);
        let reason = last.lines().rfind(|line| line.starts_with("error")).unwrap_or("see above").to_owned();
        return Err(reason);
    }
    copy(&target_dir.join(TARGET).join("release/isthmus"), object)
}

/// What compiles for BPF.
enum Compiler {
    /// A rustc that has a core library for the target.
    WithCore(PathBuf),
    /// rustup's nightly, which builds that library from source.
    Nightly,
}

impl Compiler {
    fn find() -> Result<Self, String> {
        let named = env::var_os("ISTHMUS_BPF_RUSTC").map(PathBuf::from);
        let is_named = named.is_some();
        let rustc = named.unwrap_or_else(|| PathBuf::from("/usr/bin/rustc"));
        if has_core(&rustc) {
            return Ok(Self::WithCore(rustc));
        }
        if is_named {
            return Err(format!("{} has no core library for {TARGET}", rustc.display()));
        }
        if nightly_has_sources() {
            return Ok(Self::Nightly);
        }
        Err("neither /usr/bin/rustc with a core library for BPF nor rustup's nightly with rust-src is there"
            .to_owned())
    }

    fn cargo(&self) -> Command {
        match self {
            Self::WithCore(_) => Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
        }
    }

    fn configure(&self, command: &mut Command) {
        match self {
            // Bootstrap: aya-ebpf needs assembler for BPF, which is not stable yet.
            Self::WithCore(rustc) => command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1"),
            Self::Nightly => command.env("CARGO_UNSTABLE_BUILD_STD", "core"),
        };
    }
}

fn is_of_outer_build(name: &OsString) -> bool {
    let Some(name) = name.to_str() else { return false };
    let prefixes =
        ["RUSTC", "CARGO_BUILD_", "CARGO_TARGET_", "CARGO_PROFILE_", "CARGO_FEATURE_", "CARGO_CFG_"];
    let names =
        ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTDOC", "RUSTUP_TOOLCHAIN", "TARGET", "HOST", "PROFILE"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || names.contains(&name)
}

fn has_core(rustc: &Path) -> bool {
    let Ok(output) = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output()
    else {
        return false;
    };
    let dir = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let Ok(files) = fs::read_dir(dir) else { return false };
    output.status.success()
        && files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
}

fn nightly_has_sources() -> bool {
    let output = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    output.is_ok_and(|output| {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

/// bpf-linker: of this workspace, else of the PATH.
fn find_linker(crate_dir: &Path) -> Result<PathBuf, String> {
    let ours = crate_dir.join("../target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(ours)
        .chain(env::split_paths(&path))
        .map(|dir| dir.join("bpf-linker"))
        .find(|linker| linker.is_file())
        .ok_or_else(|| "there is no bpf-linker in target/tools/bin or on the PATH".to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| format!("{}: {error}", from.display()))
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from(env::var_os(name).expect("cargo sets it for build scripts"))
}
