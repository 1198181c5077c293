//! Guards the borders that the compiler does not: who may use whom, where `unsafe` and the clock may stand, and what must not
//! be left behind. Reads the source as text, and knows just enough of Rust to skip comments, strings and unit tests.
//! Names hidden behind an alias or a macro of another crate escape it; a reviewer's eye is needed for those.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The modules of the crate, each with those it may use; `limits` is for all. A module that is not here is not allowed.
const MAY_USE: &[(&str, &[&str])] = &[
    ("main", &["cli", "config", "supervisor", "worker", "udp", "tcp", "names", "proto", "engine", "sys", "log"]),
    ("cli", &["config", "supervisor", "worker", "udp", "tcp", "names", "proto", "engine", "sys", "log"]),
    ("config", &["supervisor", "worker", "udp", "tcp", "names", "proto", "engine", "sys", "log"]),
    ("supervisor", &["worker", "udp", "tcp", "names", "proto", "engine", "sys", "log"]),
    ("worker", &["udp", "tcp", "names", "proto", "engine", "sys", "log"]),
    ("udp", &["tcp", "names", "proto", "engine", "sys"]),
    ("tcp", &["names", "proto", "engine", "sys"]),
    ("names", &["sys"]),
    ("engine", &["sys"]),
    ("proto", &[]),
    ("sys", &[]),
    ("log", &[]),
    ("limits", &[]),
];

/// Where `unsafe` may stand.
const KERNEL: &[&str] = &["engine", "sys"];

/// The only file that asks what time it is.
const CLOCK: &str = "src/sys/clock.rs";

/// What `proto` must not name: sockets, files, tasks, randomness. The end of a path, or any part of it.
const NOT_IN_PROTO: &[&str] = &[
    "async",
    "await",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixDatagram",
    "UnixListener",
    "UnixStream",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "getrandom",
    "hickory_resolver",
    "io_uring",
    "libc",
    "nix",
    "socket2",
    "tokio",
    "tokio_uring",
];

/// What must not be left behind, in two parts, so that this file does not name it either.
const LEFT_BEHIND: &[(&str, &str)] = &[("to", "do!("), ("unimple", "mented!("), ("db", "g!("), ("#[ig", "nore")];

#[test]
fn modules_use_only_what_stands_to_their_right() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        let module = source.module();
        let Some(&user) = module.first() else { continue }; // The root of the library only names its modules.
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == user) else {
            complaints.push(format!("{}: module `{user}` is not in the table of tests/tidy.rs", source.path));
            continue;
        };
        for path in paths(&source.code()) {
            let Some(used) = path.module_used(&module) else { continue };
            if used != user && used != "limits" && !allowed.contains(&used) {
                complaints.push(format!("{}:{}: `{user}` may not use `{used}`", source.path, path.line));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn unsafe_stands_in_engine_and_sys_only() {
    let mut complaints = Vec::new();
    for source in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        let allowed =
            source.path.starts_with("src/") && source.module().first().is_some_and(|name| KERNEL.contains(name));
        for token in source.tokens().iter().filter(|token| !allowed && token.text == "unsafe") {
            complaints.push(format!("{}:{}: `unsafe` outside engine and sys", source.path, token.line));
        }
    }
    assert_none(&complaints);
}

#[test]
fn each_unsafe_block_has_a_safety_comment_above_it() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        for pair in source.tokens().windows(2) {
            let opens = pair[0].text == "unsafe" && matches!(pair[1].text, "{" | "impl");
            if opens && !source.safety_comment_above(pair[0].line) {
                complaints.push(format!("{}:{}: no `SAFETY:` comment above", source.path, pair[0].line));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn only_the_clock_asks_what_time_it_is() {
    let mut complaints = Vec::new();
    for source in sources("src").filter(|source| source.path != CLOCK) {
        let code = source.code();
        let paths = paths(&code).into_iter().filter(|path| path.names("Instant::now") || path.names("SystemTime::now"));
        let calls = (0..code.len()).filter(|at| begins(&code[*at..], ". elapsed ( )")).map(|at| code[at].line);
        for line in paths.map(|path| path.line).chain(calls) {
            complaints.push(format!("{}:{line}: asks for the time; {CLOCK} does that", source.path));
        }
    }
    assert_none(&complaints);
}

#[test]
fn proto_has_no_socket_file_task_or_randomness() {
    let mut complaints = Vec::new();
    for source in sources("src/proto") {
        for path in paths(&source.code()) {
            for name in NOT_IN_PROTO.iter().filter(|name| path.names(name)) {
                complaints.push(format!("{}:{}: `{name}` in proto", source.path, path.line));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn nothing_unfinished_is_left_behind() {
    let mut complaints = Vec::new();
    for path in project_files() {
        // What is not text has no words.
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            for (head, tail) in LEFT_BEHIND.iter().filter(|(head, tail)| line.contains(&format!("{head}{tail}"))) {
                complaints.push(format!("{}:{}: `{head}{tail}`", path.display(), number + 1));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn each_bench_is_declared_and_each_declared_bench_exists() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml can be read");
    let mut declared: Vec<String> = manifest.split("[[bench]]").skip(1).map(bench_name).collect();
    declared.sort();
    let mut present: Vec<String> = files_under(&root().join("benches"))
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| path.parent().is_some_and(|parent| parent.ends_with("benches")))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    present.sort();
    assert_eq!(declared, present, "[[bench]] tables in Cargo.toml, and files in benches/");
}

#[test]
fn each_script_is_executable_and_names_its_interpreter() {
    let mut complaints = Vec::new();
    let scripts = files_under(&root().join("scripts"));
    for path in scripts.into_iter().chain([root().join(".ci/run")]) {
        let mode = std::fs::metadata(&path).expect("a script can be examined").permissions().mode();
        if mode & 0o111 == 0 {
            complaints.push(format!("{}: not executable", path.display()));
        }
        if !std::fs::read(&path).expect("a script can be read").starts_with(b"#!") {
            complaints.push(format!("{}: its first line names no interpreter", path.display()));
        }
    }
    assert_none(&complaints);
}

#[test]
fn the_guard_sees_grouped_and_relative_paths_and_skips_comments_strings_and_unit_tests() {
    let source = Source {
        path: "src/tcp/dial.rs".to_owned(),
        text: r##"
            //! See crate::cli.
            use crate::{limits, proto::{token, target as t}, worker};
            const A: (&str, &str, char) = ("crate::cli \" crate::cli", r#"crate::cli " crate::cli"#, '"');
            /* crate::cli /* crate::cli */ crate::cli */
            fn f<'a>(x: &'a super::super::engine::Ring) -> Vec::<crate::sys::Socket> { super::relay::start() }
            #[cfg(test)]
            #[allow(dead_code)]
            mod tests { use crate::cli; fn g() { crate::config::h(); } }
            fn after() -> super::super::supervisor::S { std::time::Instant::now() }
        "##
        .to_owned(),
    };
    let paths = paths(&source.code());
    let module = source.module();
    let used: Vec<_> = paths.iter().filter_map(|path| Some((path.module_used(&module)?, path.line))).collect();
    assert_eq!(
        used,
        [("limits", 3), ("proto", 3), ("proto", 3), ("worker", 3), ("engine", 6), ("sys", 6), ("supervisor", 10)]
    );
    assert_eq!(paths.iter().filter(|path| path.names("Instant::now")).count(), 1);
}

fn assert_none(complaints: &[String]) {
    let list = complaints.iter().fold(String::new(), |mut list, complaint| {
        let _ = writeln!(list, "  {complaint}");
        list
    });
    assert!(complaints.is_empty(), "\n{list}");
}

/// One Rust file.
struct Source {
    /// From the root of the project.
    path: String,
    text: String,
}

impl Source {
    /// `src/tcp/dial.rs` is `[tcp, dial]`, and the root of the library is nothing.
    fn module(&self) -> Vec<&str> {
        let mut module: Vec<&str> = self.path.trim_end_matches(".rs").split('/').skip(1).collect();
        if matches!(module.last(), Some(&("mod" | "lib"))) {
            module.pop();
        }
        module
    }

    /// All of it, unit tests included.
    fn tokens(&self) -> Vec<Token<'_>> {
        tokens(&self.text)
    }

    /// What is compiled into the program.
    fn code(&self) -> Vec<Token<'_>> {
        if self.path.ends_with("/tests.rs") { Vec::new() } else { without_tests(&self.tokens()) }
    }

    /// Looks upwards from `line`, through the statement it belongs to and the comments and attributes above.
    fn safety_comment_above(&self, line: usize) -> bool {
        let lines: Vec<&str> = self.text.lines().take(line).collect();
        for (distance, line) in lines.iter().rev().enumerate() {
            let (code, comment) = line.split_once("//").unwrap_or((line, ""));
            if comment.contains("SAFETY:") {
                return true;
            }
            let code = code.trim_end();
            let another_statement = distance > 0 && code.ends_with([';', '{', '}']);
            if another_statement || line.trim().is_empty() {
                return false;
            }
        }
        false
    }
}

/// A word, `::`, or one other character of code.
#[derive(Clone, Copy)]
struct Token<'a> {
    line: usize,
    text: &'a str,
}

/// Code without comments and without literals that have a quotation mark.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < text.len() {
        let rest = &text[at..];
        let (length, is_code) = next_piece(rest);
        let piece = &rest[..length];
        if is_code && !piece.trim().is_empty() {
            tokens.push(Token { line, text: piece });
        }
        line += piece.matches('\n').count();
        at += length;
    }
    tokens
}

/// Length in bytes of what `rest` begins with, and whether it is code.
fn next_piece(rest: &str) -> (usize, bool) {
    let first = rest.chars().next().expect("not empty");
    let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
    if rest.starts_with("//") {
        (rest.find('\n').unwrap_or(rest.len()), false)
    } else if rest.starts_with("/*") {
        (comment_length(rest), false)
    } else if first == '"' {
        (string_length(rest), false)
    } else if first == '\'' {
        (quote_length(rest), false)
    } else if let Some(length) = raw_string_length(rest, word) {
        (length, false)
    } else if word > 0 {
        (word, true)
    } else if rest.starts_with("::") {
        (2, true)
    } else {
        (first.len_utf8(), true)
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A comment in stars, with others nested in it.
fn comment_length(rest: &str) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A character such as `'x'` or `'\n'`, or the mark and the name of a lifetime.
fn quote_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    let (_, first) = chars.next().unwrap_or((0, ' '));
    let (after, second) = chars.next().unwrap_or((rest.len(), ' '));
    if first == '\\' {
        let after_escaped = after + second.len_utf8();
        rest[after_escaped..].find('\'').map_or(rest.len(), |end| after_escaped + end + 1)
    } else if second == '\'' {
        after + 1
    } else {
        1 + rest[1..].find(|c: char| !is_word(c)).unwrap_or(rest.len() - 1)
    }
}

/// `r"..."`, `br#"..."#` and the like, whose prefix is the word in front.
fn raw_string_length(rest: &str, word: usize) -> Option<usize> {
    if !matches!(&rest[..word], "r" | "br" | "cr") {
        return None;
    }
    let hashes = rest[word..].find(|c| c != '#')?;
    let body = rest[word + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = rest.len() - body.len();
    Some(body.find(&end).map_or(rest.len(), |at| start + at + end.len()))
}

/// Leaves out every item under `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let rest = &tokens[at..];
        if begins(rest, "# [ cfg ( test )") || begins(rest, "# [ cfg ( all ( test") {
            while begins(&tokens[at..], "# [") {
                at = end_of_item(tokens, at + 1);
            }
            at = end_of_item(tokens, at);
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }
    kept
}

/// Whether the tokens begin with these, which have a space between them.
fn begins(tokens: &[Token<'_>], with: &str) -> bool {
    let with: Vec<&str> = with.split(' ').collect();
    tokens.len() >= with.len() && tokens.iter().zip(with).all(|(token, text)| token.text == text)
}

/// Just behind the bracket that closes the first `{` or `[` at `at`'s own depth, or behind a `;` that comes earlier.
fn end_of_item(tokens: &[Token<'_>], mut at: usize) -> usize {
    let is_attribute = tokens.get(at).is_some_and(|token| token.text == "[");
    let mut depth = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth -= 1;
                if depth <= 0 && (is_attribute || token.text == "}") {
                    return at;
                }
            }
            ";" if depth == 0 => return at,
            _ => {}
        }
    }
    at
}

/// A path such as `crate::proto::token`, or a single word. Groups in `use` give one path for each of their members.
struct UsedPath<'a> {
    line: usize,
    words: Vec<&'a str>,
}

impl<'a> UsedPath<'a> {
    /// The module directly under the crate that this path leads to, if it leads out of `module` at all.
    fn module_used(&self, module: &[&str]) -> Option<&'a str> {
        match self.words.first() {
            Some(&("crate" | "gateway")) => self.words.get(1).copied(),
            Some(&"super") => {
                let up = self.words.iter().take_while(|word| **word == "super").count();
                if up == module.len() { self.words.get(up).copied() } else { None }
            }
            _ => None,
        }
    }

    /// Whether these words, joined by `::`, stand somewhere in the path.
    fn names(&self, words: &str) -> bool {
        let words: Vec<&str> = words.split("::").collect();
        self.words.windows(words.len()).any(|window| window == words)
    }
}

fn paths<'a>(tokens: &[Token<'a>]) -> Vec<UsedPath<'a>> {
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].text.starts_with(is_word) {
            at = read_path(tokens, at, &[], &mut paths);
        } else {
            at += 1;
        }
    }
    paths
}

/// Reads the path at `at`, behind the words of the group it stands in; gives back where it ends.
fn read_path<'a>(tokens: &[Token<'a>], mut at: usize, group: &[&'a str], paths: &mut Vec<UsedPath<'a>>) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let line = tokens[at].line;
    let mut words = group.to_vec();
    while text(at).starts_with(is_word) {
        words.push(text(at));
        at += 1;
        if text(at) != "::" {
            break;
        }
        at += 1;
    }
    if text(at) != "{" || text(at - 1) != "::" {
        paths.push(UsedPath { line, words });
        return at;
    }
    at += 1;
    while !matches!(text(at), "}" | "") {
        if text(at).starts_with(is_word) {
            at = read_path(tokens, at, &words, paths);
            // `as` and the new name, if any.
            while !matches!(text(at), "," | "}" | "") {
                at += 1;
            }
        } else {
            at += 1;
        }
    }
    at + 1
}

/// The Rust files under a directory of the project.
fn sources(directory: &str) -> impl Iterator<Item = Source> {
    let files = files_under(&root().join(directory));
    files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")).map(|path| {
        let text = std::fs::read_to_string(&path).expect("source is UTF-8");
        let path = path.strip_prefix(root()).expect("under the root").display().to_string();
        Source { path, text }
    })
}

/// What git tracks; in a copy without git, every file that no tool has made.
fn project_files() -> Vec<PathBuf> {
    let tracked = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    match tracked {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            String::from_utf8_lossy(&output.stdout).split_terminator('\0').map(PathBuf::from).collect()
        }
        _ => files_under(root()).iter().filter_map(|path| Some(path.strip_prefix(root()).ok()?.to_owned())).collect(),
    }
}

/// All files below a directory that may be missing, in order.
fn files_under(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.expect("a directory can be read").path()) {
        if path.is_symlink() || path.ends_with(".git") || path == root().join("target") {
            continue;
        }
        if path.is_dir() {
            files.extend(files_under(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The name in a `[[bench]]` table, which is what `table` begins with.
fn bench_name(table: &str) -> String {
    let line = table.lines().find(|line| line.trim_start().starts_with("name")).expect("a bench has a name");
    line.split('"').nth(1).expect("a name is quoted").to_owned()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
