//! `report.html`: one page over one run or several, with everything in it, to be read, printed and passed on.

mod figures;
mod section;
#[cfg(test)]
mod tests;

use std::path::{Component, Path, PathBuf};

use askama::Template;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::run::now_rfc3339;
use crate::{RecordError, Result, write_atomically};
use figures::Budget;
use section::{Section, plain_time};

/// The page's name in a run's folder.
pub const REPORT_FILE: &str = "report.html";

/// The page, as `templates/report.html` shows it. Askama escapes what it is given.
#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    made: String,
    sections: Vec<Section>,
}

impl Page {
    fn title(&self) -> String {
        match self.sections.as_slice() {
            [one] => format!("{} · Flatland", one.name),
            many => format!("{} runs · Flatland", many.len()),
        }
    }

    fn judged(&self) -> bool {
        self.sections.iter().any(|section| !section.claims.rows.is_empty())
    }

    /// Of the headings inside a run's part.
    fn level(&self) -> u8 {
        if self.single() { 2 } else { 3 }
    }

    fn single(&self) -> bool {
        self.sections.len() == 1
    }
}

/// Writes one HTML page over the runs in these folders, in their order, that needs neither network nor scripts: questions,
/// verdicts, numbers, figures, the first rows of each table, and how to repeat each run. Only the links to the tables
/// lead out of it, by paths from the page's own folder.
///
/// What a run has not written, or what cannot be read, is said in its place.
///
/// # Errors
/// A run without a readable manifest ([`RecordError::Read`], [`RecordError::Manifest`]); no run at all, or a page that
/// cannot be written (as [`write_atomically`]).
pub fn write_report(runs: &[PathBuf], target: &Path) -> Result<()> {
    let fail = |reason: String| RecordError::Page { path: target.to_path_buf(), reason };
    if runs.is_empty() {
        return Err(fail("there is no run to show".into()));
    }
    let place = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let place = place.canonicalize().map_err(|source| RecordError::write(target, source))?;
    let mut sections = runs.iter().map(|run| Section::read(run, &place)).collect::<Result<Vec<_>>>()?;
    let mut budget = Budget::over(&sections.iter().flat_map(|section| &section.figures).collect::<Vec<_>>());
    let names: Vec<String> = sections.iter().map(|section| section.name.clone()).collect();
    for (index, section) in sections.iter_mut().enumerate() {
        // Two runs of one experiment are told apart by their folders.
        if names.iter().filter(|name| **name == section.name).count() > 1 {
            section.label = format!("{}, {}", section.name, section.folder_name);
        }
        section.id = format!("run-{}", index + 1);
        for figure in &mut section.figures {
            figure.embed(&mut budget);
        }
    }
    let page = Page { made: plain_time(&now_rfc3339()), sections };
    let html = page.render().map_err(|error| fail(error.to_string()))?;
    write_atomically(target, html.as_bytes())
}

/// What a URL's path may hold as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The way from a page in the folder `place` to `file`, both absolute, as a relative URL.
fn link(place: &Path, file: &Path) -> String {
    let way = pathdiff::diff_paths(file, place).unwrap_or_else(|| file.to_path_buf());
    let parts = way.components().map(|part| match part {
        Component::ParentDir => "..".into(),
        part => utf8_percent_encode(&part.as_os_str().to_string_lossy(), PLAIN).to_string(),
    });
    let url = parts.collect::<Vec<_>>().join("/");
    if url.is_empty() { ".".into() } else { url }
}
