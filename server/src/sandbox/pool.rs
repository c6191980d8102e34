//! The pool: an engine with preallocated slots of memory, tables and stacks for `MAX_REQUESTS` instances.

use crate::component::description::{Description, TABLE_ELEMENT_BYTES};
use crate::component::engine;
use crate::config::size::MemorySize;
use crate::sandbox::limits::Limits;
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Creates an engine with a slot for each instance.
///
/// # Errors
/// One line with the largest `MAX_REQUESTS` that fits, if the address space is too small, for example because of 39-bit
/// addresses or `RLIMIT_AS`.
pub fn engine(component: &Description, limits: Limits) -> Result<Engine, String> {
    let engine = |instances| {
        let mut config = engine::config(component.wasi);
        let pool = pool(
            component,
            Limits {
                max_concurrent_requests: instances,
                ..limits
            },
        );
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        Engine::new(&config)
    };
    let instances = limits.max_concurrent_requests;
    engine(instances).map_err(|error| {
        let fits = |instances| {
            let mut spare = Vec::<u8>::new();
            spare.try_reserve_exact(SPARE_ADDRESS_SPACE).is_ok()
                && engine(instances + instances / SPARE_PART).is_ok()
        };
        let (mut fit, mut too_many) = (0, instances);
        while fit + 1 < too_many {
            let middle = fit + (too_many - fit) / 2;
            if fits(middle) {
                fit = middle;
            } else {
                too_many = middle;
            }
        }
        format!(
            "MAX_REQUESTS={instances}: too little address space, of which each guest reserves {} GiB; {}",
            (engine::MEMORY_RESERVATION >> 30) * u64::from(component.memories.max(1)),
            match fit {
                0 => format!("raise `ulimit -v`, as none fits: {}", error.root_cause()),
                _ => format!("set MAX_REQUESTS={fit} or less, or raise `ulimit -v`"),
            }
        )
    })
}

/// Address space to leave free when searching the largest `MAX_REQUESTS`, in bytes: for threads, their stacks, and the
/// allocator's reservation for each.
const SPARE_ADDRESS_SPACE: usize = 256 << 20;

/// One in this many slots is left free by that search, because the largest free range varies with address space
/// randomization.
const SPARE_PART: u32 = 64;

/// Maximum number of elements of a table, unless it starts with more. This is Wasmtime's default.
const TABLE_ELEMENTS: usize = 20_000;

/// Returns the configuration of the slots. Each has as many memories and tables as the component's modules define, and the
/// memories share `GUEST_MEMORY`. A component that instantiates a module several times may need more, and does not load.
fn pool(component: &Description, limits: Limits) -> PoolingAllocationConfig {
    let instances = limits.max_concurrent_requests;
    let Description {
        memories, tables, ..
    } = *component;
    let elements = component.table_elements as usize;
    // Each slot of a table keeps as much as the largest table starts with: `madvise` for those of JavaScript would interrupt the
    // other cores in each request. All tables of a sandbox keep at most as much as its memories, or a page each.
    let resident_table = (limits.resident.0 as usize / tables.max(1) as usize)
        .min(elements * TABLE_ELEMENT_BYTES)
        .max(4 << 10);
    let share = |size: MemorySize| component.memory_share(size.0);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        // Core instances have no slots.
        .total_core_instances(u32::MAX)
        .total_memories(instances.saturating_mul(memories))
        .max_memories_per_component(memories)
        .max_memories_per_module(memories)
        .total_tables(instances.saturating_mul(tables))
        .max_tables_per_component(tables)
        .max_tables_per_module(tables)
        .table_elements(elements.max(TABLE_ELEMENTS))
        .total_stacks(instances)
        .max_memory_size(share(limits.memory))
        // An instance starts with the component's initial memory. It is copied over the first bytes of a used slot, which
        // stay resident, by default all of a small guest (see the root package's build.rs). The pages above are returned
        // to the kernel (`madvise`).
        .linear_memory_keep_resident(share(limits.resident))
        .table_keep_resident(resident_table)
        // Wasmtime 48 can reset only the pages that `PAGEMAP_SCAN` reports as written and present. That misses a page that
        // is swapped out or migrating, so that the next instance would read the data of the last one.
        .pagemap_scan(Enabled::No);
    pool
}
