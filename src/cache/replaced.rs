//! Tells listeners of replaced bytes: readers may have got the bytes that were here before.
//!
//! Bytes of an unconfirmed layer are served before its digest is known, and the kernel keeps them in its pages. So
//! the layer's listeners are told when other bytes take the place of earlier ones:
//!
//! ```text
//! chunk emptied --record keeps the checksum--> other bytes come --> told, once they can be read
//! chunk changed on the disk after its check, layer poisoned or begun anew ----------> told
//! ```
//!
//! A CRC32C tells them apart. It notices every change of up to 32 bits in a row, and misses one in 4 billion of the
//! others. Then the kernel keeps a stale page, while the cache has the right bytes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use super::{LayerKey, LayerStore};
use crate::layer::StreamOffset;

/// Is told of bytes of a layer that were replaced after readers may have got them.
pub trait Listener: Send + Sync {
    /// Called once reads of `range` no longer return the earlier bytes. A thread that writes or reads the cache
    /// calls this, so it must not wait.
    fn replaced(&self, layer: LayerKey, range: Range<StreamOffset>);
}

/// The listeners of a layer, and what they were told.
#[derive(Default)]
pub(super) struct Listeners {
    all: RwLock<Vec<Weak<dyn Listener>>>,
    told: AtomicU64,
}

impl LayerStore {
    /// Tells `listener` of replaced bytes from now on, while it lives. A listener is told once, however often it
    /// asks: a browse mount asks each time that it loads a kit.
    pub fn listen(&self, listener: Weak<dyn Listener>) {
        let mut listeners = self.listeners.all.write();
        listeners.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&listener));
        listeners.push(listener);
    }

    /// Counts the replacements of bytes since the layer was opened. A reader may have got wrong bytes if the count
    /// has changed after its reads.
    pub fn replacements(&self) -> u64 {
        self.listeners.told.load(Ordering::SeqCst)
    }

    pub(super) fn tell_replaced(&self, range: Range<StreamOffset>) {
        self.listeners.told.fetch_add(1, Ordering::SeqCst);
        let listeners: Vec<Arc<dyn Listener>> =
            self.listeners.all.read().iter().filter_map(Weak::upgrade).collect();
        for listener in listeners {
            listener.replaced(self.key(), range.clone());
        }
    }

    /// The same for all bytes of the layer.
    pub(super) fn tell_all_replaced(&self) {
        if let Some(ready) = self.ready.get() {
            self.tell_replaced(ready.contents.layout.stream());
        }
    }
}
