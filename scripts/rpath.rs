//! Build script of every package that links libtorch: tells the binaries where to find it at run time.
//!
//! Link arguments reach only the package that emits them, and only direct dependents of `torch-sys` hear where its
//! libtorch lies (`DEP_TCH_LIBTORCH_LIB`), hence one such script per package.

fn main() {
    println!("cargo:rerun-if-changed=../../scripts/rpath.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    // For an image or an archive that carries `bin/` and `torch/lib/` side by side.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../torch/lib");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = std::process::Command::new(rustc).arg("--version").output();
    let version = version.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    println!("cargo:rustc-env=FLATLAND_RUSTC={}", version.trim());
}
