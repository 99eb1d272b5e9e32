//! The table of mounts.

use crate::cli::error::CliError;
use crate::cli::output::{path_text, print_table, short_digest, state_name};
use crate::cli::screen::Screen;
use crate::cli::sizes;
use crate::control::api::{MountStatus, PassthroughState};
use crate::fuse::OtherMount;
use crate::overlay;
use crate::process::view::own_view;

/// Prints the table.
pub(super) fn print<'a>(
    mounts: impl Iterator<Item = &'a MountStatus>,
    dead: &[OtherMount],
    silent: &[OtherMount],
    screen: &Screen,
    is_wide: bool,
) -> Result<(), CliError> {
    let (headings, right): (&[&str], &[usize]) = match is_wide {
        false => (&["MOUNT", "REFERENCE", "TOTAL", "RESIDENT", "STATE"], &[2, 3]),
        true => (
            &[
                "MOUNT",
                "REFERENCE",
                "DIGEST",
                "ACCESS",
                "TOTAL",
                "RESIDENT",
                "STATE",
                "REST",
                "PASSTHROUGH",
            ],
            &[4, 5],
        ),
    };
    let rows = mounts.map(|mount| if is_wide { wide_row(mount) } else { row(mount) });
    let without = |mount: &OtherMount, state: &str| {
        let mut row = vec!["-".to_owned(); headings.len()];
        row[0] = path_text(&mount.mountpoint);
        row[1].clone_from(&mount.reference);
        let state_at = headings.iter().position(|heading| *heading == "STATE");
        row[state_at.expect("each table has it")] = state.to_owned();
        row
    };
    let dead = dead.iter().map(|mount| without(mount, "DEAD"));
    let silent = silent.iter().map(|mount| without(mount, "silent"));
    let mut rows: Vec<Vec<String>> = rows.chain(dead).chain(silent).collect();
    if !is_wide {
        screen.fit(headings, [0, 1], &mut rows);
    }
    print_table(headings, right, rows)
}

fn row(mount: &MountStatus) -> Vec<String> {
    vec![
        mountpoint_text(mount),
        reference_text(mount),
        sizes::show(mount.total_bytes),
        sizes::show_resident(mount.resident_bytes, mount.unchecked_bytes),
        mount.content().as_str().to_owned(),
    ]
}

fn wide_row(mount: &MountStatus) -> Vec<String> {
    vec![
        mountpoint_text(mount),
        reference_text(mount),
        if mount.digest.is_empty() { "-" } else { short_digest(&mount.digest) }.to_owned(),
        access_text(mount),
        sizes::show(mount.total_bytes),
        sizes::show_resident(mount.resident_bytes, mount.unchecked_bytes),
        state_name(mount.state).to_owned(),
        mount.hydrate.as_str().to_owned(),
        passthrough_text(&mount.passthrough),
    ]
}

/// The mountpoint, and the owner of the mount. It may lie in another container, where the path means another directory.
fn mountpoint_text(mount: &MountStatus) -> String {
    let place = path_text(&mount.mountpoint);
    let own = own_view().ok();
    let place = match &mount.elsewhere {
        Some(view) if Some(view) != own.as_ref() => format!("{place} (in another namespace)"),
        _ => place,
    };
    match mount.owner {
        Some(pid) => format!("{place} (until process {pid} ends)"),
        None => place,
    }
}

/// The reference, and the labels that chose a kit of an index.
fn reference_text(mount: &MountStatus) -> String {
    if let Some(browse) = &mount.browse {
        return format!("{} kits by path", browse.kits.len());
    }
    let labels = mount.labels.iter().map(|label| format!(" -l {label}"));
    std::iter::once(mount.reference.clone()).chain(labels).collect()
}

/// The column ACCESS: the changes of a writable view.
fn access_text(mount: &MountStatus) -> String {
    let Some(upper) = &mount.overlay else { return "read-only".to_owned() };
    let bytes = overlay::disk_bytes(upper).map(sizes::show);
    let bytes = bytes.unwrap_or_else(|_| "changes".to_owned());
    format!("writable: {bytes} in {}", path_text(upper))
}

fn passthrough_text(passthrough: &PassthroughState) -> String {
    match passthrough {
        PassthroughState::On { open_files, opened_files } => {
            format!("on ({open_files} open, {opened_files} so far)")
        }
        PassthroughState::Off { reason } => format!("off: {reason}"),
    }
}
