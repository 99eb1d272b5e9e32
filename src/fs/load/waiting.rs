//! Work on the cache that may wait for the disk, such as reading and hashing documents.

use std::sync::Arc;

use crate::cache::Cache;

/// Runs `work` on a thread outside the runtime, because a slow disk must not hold up other loads.
pub(super) async fn with_cache<T: Send + 'static>(
    cache: &Arc<Cache>,
    work: impl FnOnce(&Arc<Cache>) -> T + Send + 'static,
) -> T {
    let cache = cache.clone();
    let done = tokio::task::spawn_blocking(move || work(&cache)).await;
    done.expect("the cache does not panic, and the runtime outlives its tasks")
}
