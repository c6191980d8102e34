//! The pool of sandboxes: an engine with slots of memory, tables and stacks for as many guests as may run.

use crate::component::description::Description;
use crate::component::engine;
use crate::sandbox::handler::Limits;
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Makes an engine with a slot of memory for each guest.
///
/// # Errors
/// One line. Where the process has too little address space, such as 39 bits of it or what `RLIMIT_AS`
/// leaves, the line has the most guests that fit.
pub fn engine(component: &Description, limits: Limits) -> Result<Engine, String> {
    let engine = |calls| {
        let mut config = engine::config(component.wasi);
        let pool = pool(
            component,
            Limits {
                max_concurrent_requests: calls,
                ..limits
            },
        );
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        Engine::new(&config)
    };
    let calls = limits.max_concurrent_requests;
    engine(calls).map_err(|error| {
        let fits = |calls| {
            let mut spare = Vec::<u8>::new();
            spare.try_reserve_exact(SPARE_ADDRESS_SPACE).is_ok()
                && engine(calls + calls / SPARE_PART).is_ok()
        };
        let (mut fit, mut too_many) = (0, calls);
        while fit + 1 < too_many {
            let middle = fit + (too_many - fit) / 2;
            if fits(middle) {
                fit = middle;
            } else {
                too_many = middle;
            }
        }
        format!(
            "MAX_REQUESTS={calls}: the address space that this process may have does not hold as many guests, each \
             with {} GiB; {}",
            (engine::MEMORY_RESERVATION >> 30) * u64::from(component.memories.max(1)),
            match fit {
                0 => format!("none fits: {}", error.root_cause()),
                _ => format!("{fit} fit"),
            }
        )
    })
}

/// Address space that the advice on `MAX_REQUESTS` leaves, in bytes: for the threads with their stacks, and what the
/// allocator reserves for each.
const SPARE_ADDRESS_SPACE: usize = 256 << 20;

/// Of so many slots, the advice leaves one: how much is free in one piece varies with where the kernel puts the program.
const SPARE_PART: u32 = 64;

/// Elements that a table may grow to, if it does not start with more: Wasmtime's default.
const TABLE_ELEMENTS: usize = 20_000;

/// Slots for guests: each as many memories and tables as the component's modules define, which share what a guest may
/// have. A component that makes several instances of a module may need more, and then does not load.
fn pool(component: &Description, limits: Limits) -> PoolingAllocationConfig {
    let calls = limits.max_concurrent_requests;
    let Description {
        memories, tables, ..
    } = *component;
    let elements = component.table_elements as usize;
    let share = |size| component.memory_share(size);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(calls)
        // They take no room of their own.
        .total_core_instances(u32::MAX)
        .total_memories(calls.saturating_mul(memories))
        .max_memories_per_component(memories)
        .max_memories_per_module(memories)
        .total_tables(calls.saturating_mul(tables))
        .max_tables_per_component(tables)
        .max_tables_per_module(tables)
        .table_elements(elements.max(TABLE_ELEMENTS))
        .total_stacks(calls)
        .max_memory_size(share(limits.memory))
        // Each guest starts from the component's initial memory. The first bytes of a used slot are
        // overwritten with it and stay resident: by default all of it for a guest that starts small (see the
        // root package's build.rs). The kernel takes the pages above them (`madvise`).
        .linear_memory_keep_resident(share(limits.resident))
        .table_keep_resident(4 << 10)
        // Resetting only the pages that the kernel reports as written (`PAGEMAP_SCAN`, as Wasmtime 48
        // asks for it: written and present) misses a page that was swapped out or is just migrating.
        // The next guest in the slot would read what the last one left there.
        .pagemap_scan(Enabled::No);
    pool
}
