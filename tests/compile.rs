//! Components, and the machine code that the program compiles them to.

mod harness;

use harness::{Guest, PROGRAM, SPIN, Server, WASI, assert_error, command};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

/// This machine's CPU architecture, and the other one.
const ARCH: &str = std::env::consts::ARCH;
const OTHER_ARCH: &str = if cfg!(target_arch = "x86_64") {
    "aarch64"
} else {
    "x86_64"
};

/// An empty directory of this name.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("compile")
        .join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("a directory");
    path
}

/// Writes a file into a directory of its own.
fn file(name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = directory(name).join(name);
    fs::write(&path, bytes).expect("a file");
    path
}

/// Runs the program in a directory; a server would listen on a free port.
fn run(directory: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = command(PROGRAM);
    command.current_dir(directory).args(arguments);
    command.env("PORT", "0").envs(env.iter().copied());
    command.output().expect("it runs")
}

fn compile(input: &Path, output: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut command = command(PROGRAM);
    command
        .arg("compile")
        .arg(input)
        .arg("-o")
        .arg(output)
        .args(arguments);
    let ended = command.output().expect("it runs");
    assert!(ended.status.success(), "{ended:?}");
    fs::read(output).expect("the output")
}

/// Checks that `serve` and `compile` reject a file with this message.
#[track_caller]
fn assert_rejected(path: &Path, rest: &str) {
    let line = format!("{}{rest}", path.display());
    let name = path.to_str().expect("UTF-8");
    let directory = path.parent().expect("a directory");
    assert_error(&run(directory, &["serve", name], &[]), 1, &line);
    assert_error(&run(directory, &["compile", name], &[]), 1, &line);
    assert!(!path.with_extension("cwasm").exists());
}

/// A component that has imports and exports, all of them instances without contents (component model,
/// binary format).
fn component(imports: &[&str], exports: &[&str]) -> Vec<u8> {
    let name = |name: &&str| [&[0, name.len() as u8][..], name.as_bytes()].concat();
    let section = |id, count: usize, items: Vec<u8>| {
        let mut size = items.len() + 1;
        let mut section = vec![id];
        while size > 127 {
            section.push(size as u8 & 127 | 128);
            size >>= 7;
        }
        [section, vec![size as u8, count as u8], items].concat()
    };
    let instance_type = vec![0x42, 0];
    let imported = imports
        .iter()
        .flat_map(|it| [name(it), vec![5, 0]].concat());
    let exported = exports
        .iter()
        .flat_map(|it| [name(it), vec![5, 0, 0]].concat());
    [
        b"\0asm\x0d\0\x01\0".to_vec(),
        section(7, 1, instance_type),
        section(10, imports.len(), imported.collect()),
        section(11, exports.len(), exported.collect()),
    ]
    .concat()
}

/// Adds a `name` section that gives a component its name.
fn named(mut wasm: Vec<u8>, name: &str) -> Vec<u8> {
    let length = name.len() as u8;
    let name = [&[0, length + 1, length], name.as_bytes()].concat();
    let section = [&[14][..], b"component-name", &name].concat();
    wasm.extend([0, section.len() as u8]);
    wasm.extend(section);
    wasm
}

/// The first line that a server logs.
fn startup_line(component: &Path) -> String {
    let mut command = command(PROGRAM);
    command.arg(component);
    Server::spawn(command, &[]).startup_line.clone()
}

fn sha256(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output();
    let output = String::from_utf8(output.expect("sha256sum runs").stdout).expect("ASCII");
    output.split(' ').next().expect("a digest").to_owned()
}

#[test]
fn compilation_is_reproducible() {
    let directory = directory("same");
    for guest in [WASI, SPIN] {
        let once = compile(&guest.wasm(), &directory.join("once.cwasm"), &[]);
        let twice = compile(
            &guest.wasm(),
            &directory.join("twice.cwasm"),
            &["--target", ARCH],
        );
        assert!(once == twice);
    }
}

#[test]
fn targets_have_aliases() {
    let directory = directory("targets");
    let mut compiled = [["x86_64", "amd64"], ["aarch64", "arm64"]].map(|names| {
        let [one, other] = names.map(|name| {
            let output = directory.join(name).with_extension("cwasm");
            compile(&WASI.wasm(), &output, &["--target", name])
        });
        assert!(one == other);
        one
    });
    // e_machine (ELF, System V ABI): EM_X86_64 and EM_AARCH64.
    let machines = compiled
        .each_mut()
        .map(|file| u16::from_le_bytes([file[18], file[19]]));
    assert_eq!(machines, [62, 183]);
}

#[test]
fn output_and_target_have_defaults() {
    let input = file("input.wasm", fs::read(WASI.wasm()).expect("a component"));
    let directory = input.parent().expect("a directory");
    for (target, arch) in [("", ARCH), ("arm64", "aarch64"), ("amd64", "x86_64")] {
        let output = run(
            directory,
            &["compile", "input.wasm"],
            &[("TARGETARCH", target)],
        );
        assert!(output.status.success(), "{output:?}");
        let file = fs::read(directory.join("input.cwasm")).expect("the output");
        let expected = compile(&input, &directory.join("other.cwasm"), &["--target", arch]);
        assert!(file == expected, "TARGETARCH={target}");
    }
    // There are no other files.
    let files = fs::read_dir(directory).expect("a directory").count();
    assert_eq!(files, 3);
}

#[test]
fn startup_line_describes_component() {
    for (guest, wasi) in [(WASI, "WASI 0.2"), (SPIN, "WASI 0.3")] {
        let digest = sha256(&guest.wasm());
        let description = |name: &str, digest: &str| {
            let version = env!("CARGO_PKG_VERSION");
            format!(
                ": component \"{name}\" ({wasi}, sha256:{digest}, compiled by {version}), MAX_CONNECTIONS="
            )
        };
        // By the name of the file, compiled in memory or before.
        for file in [guest.wasm(), guest.cwasm()] {
            let line = startup_line(&file);
            assert!(
                line.contains(&description("wasi_essentials", &digest)),
                "{line}"
            );
        }
        // By the name in the component.
        let wasm = named(fs::read(guest.wasm()).expect("a component"), "greeter");
        let input = file(&format!("{}.wasm", guest.entry), wasm);
        let line = startup_line(&input);
        assert!(
            line.contains(&description("greeter", &sha256(&input))),
            "{line}"
        );
    }
}

#[test]
fn argument_overrides_component_variable() {
    let cwasm = WASI.cwasm();
    let of_environment = |arguments: &[&str], component: &str| {
        let mut command = command(PROGRAM);
        command.args(arguments).env("COMPONENT", component);
        Server::spawn(command, &[]).startup_line.clone()
    };
    let file = cwasm.to_str().expect("UTF-8");
    for (arguments, component) in [
        (&[][..], file),
        (&["serve"], file),
        (&["serve", file], "none"),
    ] {
        let line = of_environment(arguments, component);
        assert!(line.contains("wasi_essentials"), "{line}");
    }
    let line = "no component: there is no /component.cwasm, and COMPONENT is not set; see --help";
    assert_error(&run(Path::new("/"), &[], &[("COMPONENT", "")]), 2, line);
}

#[test]
fn unreadable_file_is_reported() {
    let directory = directory("unreadable");
    assert_rejected(&directory.join("none.wasm"), ": no such file");
    assert_rejected(&directory, ": a directory, not a component");
    let line = "no command and no file: sreve; see --help";
    assert_error(&run(&directory, &["sreve"], &[]), 2, line);
}

#[test]
fn non_component_is_rejected() {
    let text = file("text.wasm", "(component)");
    assert_rejected(&text, ": not a WebAssembly component");
    assert_rejected(&file("empty.wasm", ""), ": not a WebAssembly component");
    let module = file("module.wasm", b"\0asm\x01\0\0\0");
    let line = ": a core WebAssembly module, not a component: build it for wasm32-wasip2, or make a component of it \
                with `wasm-tools component new`";
    assert_rejected(&module, line);
}

#[test]
fn truncated_component_is_rejected() {
    let mut wasm = fs::read(WASI.wasm()).expect("a component");
    wasm.truncate(wasm.len() / 2);
    let cut = file("cut.wasm", wasm);
    let directory = cut.parent().expect("a directory");
    for command in ["serve", "compile"] {
        let output = run(directory, &[command, "cut.wasm"], &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            stderr.starts_with("error: cut.wasm: not a valid component: "),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn component_without_http_export_is_rejected() {
    let rest = ": exports neither wasi:http/incoming-handler@0.2 nor wasi:http/handler@0.3, so that it cannot serve \
                HTTP; it exports ";
    let nothing = file("nothing.wasm", component(&[], &[]));
    assert_rejected(&nothing, &format!("{rest}nothing"));
    let imports = ["wasi:cli/environment@0.2.0"];
    let exports = [
        "wasi:cli/run@0.2.0",
        "wasi:http/handler@0.3.0-rc-2026-01-06",
    ];
    let other = file("command.wasm", component(&imports, &exports[..1]));
    assert_rejected(&other, &format!("{rest}{}", exports[0]));
    let draft = file("draft.wasm", component(&imports, &exports[1..]));
    assert_rejected(&draft, &format!("{rest}{}", exports[1]));
}

#[test]
fn unknown_imports_are_all_reported() {
    let imports = [
        "wasi:keyvalue/store@0.2.0-draft2",
        "wasi:clocks/wall-clock@0.2.0",
        "wasi:io/streams@1.0.0",
        "example:own/interface",
    ];
    let wasm = component(&imports, &["wasi:http/incoming-handler@0.2.0"]);
    let rest = ": imports what this server does not have: wasi:keyvalue/store@0.2.0-draft2, wasi:io/streams@1.0.0, \
                example:own/interface";
    assert_rejected(&file("imports.wasm", wasm), rest);
}

#[test]
fn invalid_arguments_exit_with_2() {
    let directory = directory("arguments");
    for (arguments, env, line) in [
        (
            &["compile"][..],
            None,
            "`compile` takes a .wasm; see --help",
        ),
        (
            &["compile", "a.wasm", "--target", "mips"],
            None,
            "--target=mips: not a CPU architecture (x86_64 or amd64, aarch64 or arm64)",
        ),
        (
            &["compile", "a.wasm"],
            Some(("TARGETARCH", "arm")),
            "TARGETARCH=arm: not a CPU architecture (x86_64 or amd64, aarch64 or arm64)",
        ),
        (
            &["compile", "a.wasm", "--listen", "127.0.0.1:0"],
            None,
            "`compile` takes no --listen; see --help",
        ),
        (
            &["serve", "a.wasm", "-o", "b"],
            None,
            "`serve` takes no --output; see --help",
        ),
        (
            &["healthcheck", "a.wasm"],
            None,
            "`healthcheck` takes no file; see --help",
        ),
        (
            &["a.wasm", "b.wasm"],
            None,
            "unexpected argument \"b.wasm\"; see --help",
        ),
    ] {
        let output = run(&directory, arguments, env.as_slice());
        assert_error(&output, 2, line);
    }
}

#[test]
fn unwritable_output_is_reported_before_compilation() {
    let directory = directory("output");
    let input = WASI.wasm();
    let input = input.to_str().expect("UTF-8");
    for (output, reason) in [
        ("none/out.cwasm", "No such file or directory (os error 2)"),
        ("../output", "is a directory"),
    ] {
        let ended = run(&directory, &["compile", input, "-o", output], &[]);
        let line = format!("error: cannot write {output}: {reason}\n");
        assert_eq!(String::from_utf8_lossy(&ended.stderr), line);
        assert_eq!(ended.status.code(), Some(1));
    }
}

#[test]
fn input_is_not_overwritten() {
    let wasm = fs::read(WASI.wasm()).expect("a component");
    let input = file("kept.wasm", &wasm);
    let directory = input.parent().expect("a directory");
    std::os::unix::fs::symlink("kept.wasm", directory.join("link")).expect("a link");
    for output in ["kept.wasm", "./kept.wasm", "link"] {
        let ended = run(directory, &["compile", "kept.wasm", "-o", output], &[]);
        assert_error(&ended, 1, "kept.wasm: input and output are one file");
        assert!(fs::read(&input).expect("the input") == wasm);
    }
    let compiled = run(directory, &["compile", "kept.wasm"], &[]);
    assert!(compiled.status.success(), "{compiled:?}");
    let ended = run(directory, &["compile", "kept.cwasm"], &[]);
    assert_error(&ended, 1, "kept.cwasm: machine code already, not a .wasm");
}

/// An output that is not a file is written to, and not replaced.
#[test]
fn output_is_written_to_pipe() {
    let directory = directory("pipe");
    let input = WASI.wasm();
    let mut command = command(PROGRAM);
    command
        .arg("compile")
        .arg(&input)
        .args(["-o", "/proc/self/fd/1"]);
    let output = command.current_dir(&directory).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout == fs::read(WASI.cwasm()).expect("a file"));
}

#[test]
fn input_from_pipe_requires_output() {
    let mut command = command(PROGRAM);
    command
        .args(["compile", "/proc/self/fd/0"])
        .stdin(Stdio::piped());
    let mut process = command.stderr(Stdio::piped()).spawn().expect("it runs");
    let mut stdin = process.stdin.take().expect("a pipe");
    stdin
        .write_all(&fs::read(WASI.wasm()).expect("a component"))
        .expect("sent");
    drop(stdin);
    let output = process.wait_with_output().expect("it ends");
    let line = "/proc/self/fd/0: not a file: say with -o what to write";
    assert_error(&output, 1, line);
}

#[test]
fn replaced_output_keeps_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let output = file("secret.cwasm", "old");
    fs::set_permissions(&output, fs::Permissions::from_mode(0o600)).expect("set");
    compile(&WASI.wasm(), &output, &[]);
    let mode = fs::metadata(&output).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Contents of files and arguments are escaped in errors.
#[test]
fn error_is_one_line_without_control_characters() {
    let forged = "one\nerror: forged \u{1b}[31m";
    let imports = component(&[forged], &["wasi:http/incoming-handler@0.2.0"]);
    let exports = component(&["wasi:cli/environment@0.2.0"], &[forged]);
    let directory = directory("forged");
    fs::write(directory.join("imports.wasm"), imports).expect("a file");
    fs::write(directory.join("exports.wasm"), exports).expect("a file");
    fs::write(directory.join(forged), "").expect("a file");
    for arguments in [
        &["compile", "imports.wasm"][..],
        &["serve", "exports.wasm"],
        &["serve", forged],
        &["compile", "imports.wasm", "--target", forged],
        &[forged, forged],
    ] {
        let ended = run(&directory, arguments, &[]);
        let stderr = String::from_utf8_lossy(&ended.stderr);
        let line = stderr.strip_suffix('\n').expect("a line");
        assert!(
            line.starts_with("error: ") && line.contains("one\\nerror: forged"),
            "{line}"
        );
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

/// The machine code of a component, with these bytes in its trailer replaced.
fn edited(name: &str, guest: Guest, edits: &[(&str, &str)]) -> PathBuf {
    let mut compiled = fs::read(guest.cwasm()).expect("a file");
    for (old, new) in edits {
        assert_eq!(old.len(), new.len());
        let at = compiled
            .windows(old.len())
            .rposition(|bytes| bytes == old.as_bytes());
        let at = at.expect("the trailer has it");
        compiled[at..at + new.len()].copy_from_slice(new.as_bytes());
    }
    file(name, compiled)
}

#[test]
fn machine_code_for_another_cpu_is_rejected() {
    let output = directory("cpu").join("other.cwasm");
    compile(&WASI.wasm(), &output, &["--target", OTHER_ARCH]);
    let name = output.to_str().expect("UTF-8");
    let line = format!(
        "{name}: compiled for {OTHER_ARCH}, and this is {ARCH}: compile it with `--target {ARCH}`"
    );
    assert_error(&run(Path::new("/"), &[name], &[]), 1, &line);
}

#[test]
fn machine_code_of_another_version_or_setting_is_rejected() {
    let version = env!("CARGO_PKG_VERSION");
    let other = version.replacen(&version[..1], "9", 1);
    let [written, edit] = [version, &other].map(|version| format!("\"version\":\"{version}\""));
    let setting = ("\"wasi\":\"0.2\"", "\"wasi\":\"0.3\"");
    let reason = "Module was compiled without concurrency support but it is enabled for the host; compile it again";
    for (name, edits, mismatch) in [
        (
            "version.cwasm",
            &[setting, (written.as_str(), edit.as_str())][..],
            format!("compiled by version {other}, does not fit version {version}"),
        ),
        (
            "setting.cwasm",
            &[setting],
            "damaged, or compiled with other settings".into(),
        ),
    ] {
        let path = edited(name, WASI, edits);
        let file = path.to_str().expect("UTF-8");
        let line = format!("{file}: {mismatch}: {reason}");
        assert_error(&run(Path::new("/"), &[file], &[]), 1, &line);
    }
}

/// A core module with a memory, and two instances of it.
const TWO_MEMORIES: [u8; 24] = [
    1, 13, 0, b'a', b's', b'm', 1, 0, 0, 0, 5, 3, 1, 0, 1, // The module.
    2, 7, 2, 0, 0, 0, 0, 0, 0, // Two instances, of module 0, without arguments.
];

#[test]
fn component_over_sandbox_limits_is_rejected() {
    let imports = ["wasi:cli/environment@0.2.0"];
    let exports = ["wasi:http/incoming-handler@0.2.0"];
    let wasm = [component(&imports, &exports), TWO_MEMORIES.into()].concat();
    let input = file("two.wasm", wasm);
    let output = input.with_extension("cwasm");
    compile(&input, &output, &[]);
    for path in [input, output] {
        let path = path.to_str().expect("UTF-8");
        let ended = run(Path::new("/"), &[path], &[]);
        let stderr = String::from_utf8_lossy(&ended.stderr);
        let line = stderr.lines().last().expect("a line");
        let begin = format!("error: {path}: needs more than a sandbox has: ");
        assert!(
            line.starts_with(&begin) && line.contains("memories"),
            "{stderr}"
        );
        assert_eq!(ended.status.code(), Some(1));
    }
}

/// A core module with two tables, which are empty, and an instance of it.
const TWO_TABLES: [u8; 25] = [
    1, 17, 0, b'a', b's', b'm', 1, 0, 0, 0, 4, 7, 2, 0x70, 0, 0, 0x70, 0, 0, // The module.
    2, 4, 1, 0, 0, 0, // An instance of module 0, without arguments.
];

#[test]
fn module_with_two_tables_is_accepted() {
    let exports = ["wasi:http/incoming-handler@0.2.0"];
    let imports = ["wasi:cli/environment@0.2.0"];
    let wasm = [component(&imports, &exports), TWO_TABLES.into()].concat();
    let input = file("tables.wasm", wasm);
    let path = input.to_str().expect("UTF-8");
    let ended = run(Path::new("/"), &[path], &[]);
    // The tables are accepted. The error is of the export, which is no handler.
    let stderr = String::from_utf8_lossy(&ended.stderr);
    let line = stderr.lines().last().expect("a line");
    assert!(line.contains("incoming-handler"), "{stderr}");
}

#[test]
fn truncated_machine_code_is_rejected() {
    let whole = fs::read(WASI.cwasm()).expect("a file");
    for part in [whole.len() - 1, whole.len() / 2, 4] {
        let path = file("part.cwasm", &whole[..part]);
        let name = path.to_str().expect("UTF-8");
        let line = format!(
            "{name}: not a file that `wasi-essentials compile` has made, or only a part of one; compile the .wasm again"
        );
        assert_error(&run(Path::new("/"), &[name], &[]), 1, &line);
    }
}

#[test]
fn component_over_guest_memory_is_rejected() {
    let cwasm = WASI.cwasm();
    let name = cwasm.to_str().expect("UTF-8");
    let output = run(Path::new("/"), &[name], &[("GUEST_MEMORY", "64KiB")]);
    let line = format!("GUEST_MEMORY=64KiB: {name} starts with 128KiB; set at least that");
    assert_error(&output, 1, &line);
}
