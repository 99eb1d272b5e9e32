//! The parts of the page. Pure.

use std::path::Path;

use maud::{DOCTYPE, Markup, html};

use super::chart::{Line, Scale, chart};
use super::text::{duration, latency, percent, rate, shown};
use crate::control::api::{
    ActivityReport, ActivitySample, Cell, ContentState, DaemonStatus, HydrateState, KitState,
    MountStatus, Residency, ResidencyRow,
};
use crate::fs::percent_encoded;
use crate::observe::shown_bytes;

/// The seconds after which a browser loads the page again: two samples.
const REFRESH_SECONDS: u32 = 10;
/// The samples of the charts: ten minutes.
const SAMPLES: usize = 120;
/// The units of a bar, stretched to its width.
const BAR: u64 = 1000;

/// The contents of the page.
pub(super) struct View<'a> {
    pub(super) status: &'a DaemonStatus,
    pub(super) activity: &'a ActivityReport,
    pub(super) mounts: &'a [MountView<'a>],
    /// Seconds since 1970.
    pub(super) now: i64,
}

/// A mount, and the map of its files.
pub(super) struct MountView<'a> {
    pub(super) mount: &'a MountStatus,
    pub(super) map: Option<Residency>,
}

/// The page.
pub(super) fn page(view: &View<'_>) -> Markup {
    let status = view.status;
    let left_out = status.mounts.len() - view.mounts.len();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="refresh" content=(REFRESH_SECONDS);
                title { "kitfs: " (count(status.mounts.len(), "mount", "mounts")) }
                link rel="stylesheet" href="/style.css";
            }
            body {
                header {
                    h1 { "kitfs" span.version { (shown(&status.version)) } }
                    p { "up " (duration(view.now - status.started_at)) " · process " (status.worker_pid) " · " (path(&status.cache_folder)) }
                }
                main {
                    (problems(status))
                    (figures(view))
                    (charts(&view.activity.samples, view.activity.sample_seconds))
                    section {
                        h2 { "Mounts" }
                        @if view.mounts.is_empty() {
                            div.empty {
                                p { "Nothing is mounted." }
                                p { code { "kitfs mount ghcr.io/org/model:v1 /models" } " mounts a kit." }
                            }
                        } @else {
                            div.mounts { @for mount in view.mounts { (mount_card(mount, view.now)) } }
                            (legend())
                        }
                        @if left_out > 0 { p.note { (left_out) " more mounts: " code { "kitfs status" } } }
                    }
                    (hosts(view.activity))
                }
                footer {
                    a href="/metrics" { "metrics" } a href="/v1/status" { "status" } a href="/v1/activity" { "activity" }
                    span { "loads again every " (REFRESH_SECONDS) " s" }
                }
            }
        }
    }
}

/// The problems that need attention.
fn problems(status: &DaemonStatus) -> Markup {
    let mut all: Vec<(String, String)> = Vec::new();
    if status.cache_folder_is_lost {
        all.push((
            "Cache".to_owned(),
            "the cache folder was removed or replaced; the daemon ends with its last mount"
                .to_owned(),
        ));
    }
    if let Some(trouble) = &status.cache_trouble {
        all.push((
            "Cache".to_owned(),
            format!("it keeps no bytes, and reads go through without it: {trouble}"),
        ));
    }
    for mount in &status.mounts {
        let place = mount.mountpoint.to_string_lossy().into_owned();
        if mount.state == KitState::Poisoned {
            all.push((
                place.clone(),
                "a layer has a wrong digest, and its files cannot be read".to_owned(),
            ));
        }
        if let Some(failure) = &mount.last_failure {
            all.push((place.clone(), format!("a read failed: {failure}")));
        }
        if let HydrateState::Failed { reason } = &mount.hydrate {
            all.push((place, format!("the background download failed: {reason}")));
        }
    }
    html! {
        @if !all.is_empty() {
            section.problems {
                h2 { (count(all.len(), "problem", "problems")) }
                ul { @for (place, why) in all.iter().take(20) { li { strong { bdi { (shown(place)) } } span { (shown(why)) } } } }
            }
        }
    }
}

/// The figures of the last ten minutes.
fn figures(view: &View<'_>) -> Markup {
    let (status, samples) = (view.status, &view.activity.samples);
    let sum = |of: fn(&ActivitySample) -> u64| samples.iter().map(of).sum::<u64>();
    let (hits, misses) = (sum(|it| it.hits), sum(|it| it.misses));
    let failed = sum(|it| it.failed_reads);
    let recent = samples.iter().rev().take(2).map(|it| it.read_bytes).sum::<u64>();
    let seconds = (view.activity.sample_seconds * samples.len().clamp(1, 2) as u64) as f64;
    let capacity = match status.cache_capacity_bytes {
        Some(bytes) => format!("of {}", shown_bytes(bytes)),
        None => "no limit but the disk".to_owned(),
    };
    let running: u64 = view.activity.hosts.iter().map(|host| host.running).sum();
    html! {
        section.figures aria-label="Figures" {
            (figure("Read now", &rate(recent as f64 / seconds), "by programs", false))
            (figure("Fetched", &shown_bytes(sum(|it| it.fetched_bytes)), &format!("in 10 min · {running} requests now"), false))
            (figure("Reads from cache", &percent(hits, hits + misses), &format!("of {} in 10 min", grouped(hits + misses)), false))
            (figure("Failed reads", &grouped(failed), "in 10 min", failed > 0))
            (figure("Cache", &shown_bytes(status.cache_resident_bytes), &capacity, status.cache_trouble.is_some()))
        }
    }
}

fn figure(name: &str, value: &str, note: &str, is_bad: bool) -> Markup {
    html! {
        div.figure.bad[is_bad] {
            h3 { (name) }
            p.value { (value) }
            p.note { (note) }
        }
    }
}

fn charts(samples: &[ActivitySample], seconds: u64) -> Markup {
    let per_second = |bytes: u64| Some(bytes as f64 / seconds.max(1) as f64);
    let series =
        |of: &dyn Fn(&ActivitySample) -> Option<f64>| samples.iter().map(of).collect::<Vec<_>>();
    let read = series(&|it| per_second(it.read_bytes));
    let fetched = series(&|it| per_second(it.fetched_bytes));
    let median = series(&|it| it.median_us.map(|us| us as f64));
    let p99 = series(&|it| it.p99_us.map(|us| us as f64));
    let rates = Scale::linear(read.iter().chain(&fetched).copied().flatten(), 1024.0);
    let times = Scale::logarithmic(median.iter().chain(&p99).copied().flatten());
    let has_reads = median.iter().any(Option::is_some);
    let has_bytes = read.iter().chain(&fetched).any(|value| value.is_some_and(|value| value > 0.0));
    let rate_lines = [
        Line { class: "read", name: "Read by programs", values: &read },
        Line { class: "fetched", name: "Fetched", values: &fetched },
    ];
    let time_lines = [
        Line { class: "median", name: "Half of the reads", values: &median },
        Line { class: "p99", name: "99 of 100 reads", values: &p99 },
    ];
    html! {
        section.charts {
            (panel("Throughput", &rate_lines, has_bytes, "Nothing was read in the last ten minutes.", chart(&rate_lines, rates, SAMPLES, rate)))
            (panel("Time of a read", &time_lines, has_reads, "No program read through the daemon in the last ten minutes.", chart(&time_lines, times, SAMPLES, latency)))
        }
    }
}

fn panel(
    title: &str,
    lines: &[Line<'_>],
    has_values: bool,
    empty: &str,
    picture: Markup,
) -> Markup {
    html! {
        div.panel {
            div.head {
                h2 { (title) }
                p.keys { @for line in lines { span.key.(line.class) { (line.name) } } }
            }
            @if has_values { (picture) } @else { p.empty { (empty) } }
        }
    }
}

fn mount_card(view: &MountView<'_>, now: i64) -> Markup {
    let mount = view.mount;
    let content = mount.content();
    let class = match content {
        ContentState::Bad => "bad",
        ContentState::Verified | ContentState::Complete => "good",
        ContentState::Fetching => "usual",
    };
    let resident = percent(mount.resident_bytes, mount.total_bytes);
    html! {
        article.mount {
            div.head {
                h3 { (path(&mount.mountpoint)) }
                span.state.(class) { (content.as_str()) }
            }
            p.reference title=(shown(&mount.digest)) { bdi { (shown(&mount.reference)) } }
            div.share {
                (bar(mount.resident_bytes, mount.total_bytes))
                span.percent { (resident) }
            }
            p.note {
                (shown_bytes(mount.resident_bytes)) " of " (shown_bytes(mount.total_bytes)) " · "
                (count(usize::try_from(mount.entries).unwrap_or(usize::MAX), "entry", "entries"))
                " · for " (duration(now - mount.mounted_at))
                @if content == ContentState::Fetching { " · rest: " (mount.hydrate.as_str()) }
            }
            @if let Some(map) = &view.map { (files(map)) }
        }
    }
}

/// The largest files, each with a bar of its parts.
fn files(map: &Residency) -> Markup {
    let others = map.left_out;
    html! {
        @if !map.rows.is_empty() {
            ul.files {
                @for row in &map.rows { (file(row)) }
                @if others > 0 { li.others { (grouped(others)) @if others == 1 { " smaller file" } @else { " smaller files" } } }
            }
        }
    }
}

fn file(row: &ResidencyRow) -> Markup {
    let path = shown(&percent_encoded(&row.path.0));
    let (folder, name) =
        path.rsplit_once('/').map_or(("", &*path), |(folder, name)| (folder, name));
    let here = percent(row.total.resident_bytes, row.total.stored_bytes);
    html! {
        li title=(format!("{path}: {here} of {} here", shown_bytes(row.total.bytes))) {
            span.name {
                @if !folder.is_empty() { bdi.folder { (folder) "/" } }
                bdi.base { (name) }
            }
            span.size { (shown_bytes(row.total.bytes)) }
            (heat(row))
        }
    }
}

/// A strip with a rectangle for each run of parts in the same state. A small file has at most one part for each
/// byte.
fn heat(row: &ResidencyRow) -> Markup {
    let parts = usize::try_from(row.total.bytes).unwrap_or(usize::MAX).min(row.cells.len());
    let mut runs: Vec<(usize, usize, &str)> = Vec::new();
    for (at, class) in row.cells[..parts].iter().map(class_of).enumerate() {
        match runs.last_mut() {
            Some((_, length, last)) if *last == class => *length += 1,
            _ => runs.push((at, 1, class)),
        }
    }
    html! {
        @if parts > 0 {
            svg.heat aria-hidden="true" viewBox=(format!("0 0 {parts} 1")) preserveAspectRatio="none" {
                @for (at, length, class) in runs {
                    @if class != "absent" { rect.(class) x=(at) width=(length) height="1" {} }
                }
            }
        }
    }
}

fn class_of(cell: &Cell) -> &'static str {
    match cell {
        Cell { bad: 1.., .. } => "bad",
        Cell { verified: 100.., .. } => "verified",
        Cell { resident: 100.., .. } => "resident",
        Cell { fetching: 1.., .. } => "fetching",
        Cell { resident: 50.., .. } => "most",
        Cell { resident: 1.., .. } => "some",
        Cell { hole: true, .. } => "hole",
        Cell { .. } => "absent",
    }
}

fn legend() -> Markup {
    html! {
        p.legend aria-label="Colours of the bars" {
            span.key.verified { "here, digest right" }
            span.key.resident { "here" }
            span.key.some { "in part" }
            span.key.fetching { "on its way" }
            span.key.bad { "wrong digest" }
            span.key.absent { "not here" }
        }
    }
}

/// A bar of one share.
fn bar(part: u64, whole: u64) -> Markup {
    let width = u128::from(part.min(whole)) * u128::from(BAR) / u128::from(whole.max(1));
    // Even one byte is visible.
    let width = if part > 0 { width.max(4) } else { 0 };
    html! {
        svg.bar aria-hidden="true" viewBox=(format!("0 0 {BAR} 1")) preserveAspectRatio="none" {
            rect width=(width) height="1" {}
        }
    }
}

fn hosts(activity: &ActivityReport) -> Markup {
    html! {
        @if !activity.hosts.is_empty() {
            section {
                h2 { "Registries" }
                div.scroll {
                    table {
                        thead { tr { th { "Host" } th.number { "Under way" } th.number { "Waiting" } th.number { "Requests" } th.number { "Received" } th.number { "Refused" } } }
                        tbody {
                            @for host in &activity.hosts {
                                tr {
                                    td { bdi { (shown(&host.host)) } }
                                    td.number { (host.running) " of " (host.limit) }
                                    td.number { (host.waiting) }
                                    td.number { (grouped(host.requests)) }
                                    td.number { (shown_bytes(host.body_bytes)) }
                                    td.number.bad[host.refusals > 0] { (grouped(host.refusals)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A path that may wrap after each slash.
fn path(path: &Path) -> Markup {
    let text = shown(&path.to_string_lossy());
    html! { bdi.path { @for part in text.split_inclusive('/') { (part) wbr; } } }
}

/// A number in groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for group in digits.as_bytes()[first..].chunks(3) {
        if !text.is_empty() {
            text.push('\u{202f}');
        }
        text.extend(group.iter().map(|digit| char::from(*digit)));
    }
    text
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number as u64), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::examples::{activity, status};

    fn page_of(status: &DaemonStatus) -> String {
        let activity = activity();
        let mounts: Vec<_> =
            status.mounts.iter().map(|mount| MountView { mount, map: None }).collect();
        page(&View { status, activity: &activity, mounts: &mounts, now: 90 }).into_string()
    }

    #[test]
    fn text_of_kits_stays_text() {
        let hostile = "<script>alert(1)</script>\"'&\u{1b}";
        let mount = json!({
            "mountpoint": format!("/m/{hostile}"), "reference": hostile, "digest": hostile, "entries": 1, "total_bytes": 10,
            "resident_bytes": 3, "state": "poisoned", "mounted_at": 0, "warnings": [hostile], "last_failure": hostile,
            "passthrough": {"off": {"reason": hostile}}, "hydrate": {"failed": {"reason": hostile}},
            "readahead": {"read_bytes": 0, "unread_bytes": 0, "predictors": []},
        });
        let text = page_of(&status(json!([mount])));
        assert!(!text.contains("<script") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("&lt;script&gt;") && text.contains("3 problems"), "{text}");
        assert!(!text.contains("style=") && !text.contains("<style"), "the policy forbids it");
    }

    #[test]
    fn an_idle_daemon_has_a_page() {
        let text = page_of(&status(json!([])));
        for words in ["Nothing is mounted.", "kitfs: 0 mounts", "up 1 min", "No program read"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("problem"), "{text}");
    }

    #[test]
    fn large_numbers_are_grouped() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(grouped),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
    }
}
