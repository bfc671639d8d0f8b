/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Leases: another module holds a range of a DAX disk of pmem_rs for long, at one contiguous kernel
 * address, and is notified before the device is unbound. docs/leases.md has an overview.
 *
 * The disk is one of pmem_rs, a partition of it, or a device-mapper device whose targets pass DAX
 * through to such disks. A lease claims it exclusively, as a mount does.
 */
#ifndef PMEM_RS_LEASE_H
#define PMEM_RS_LEASE_H

#include <linux/types.h>

struct module;
struct pmem_rs_lease;

/**
 * struct pmem_rs_lease_ops - the callbacks of the holder of a lease
 * @owner: the module of the callbacks, which is not unloaded while one of them runs; NULL if it is
 *	built in
 * @revoke: The device is going to be unbound. Called once. The holder writes back what it has, and
 *	gives the lease back, here or later. Until the lease is given back, the time limit has
 *	passed (parameter revoke_timeout_ms) or the unbind is killed, the disk can be read and
 *	written. The memory stays mapped until the lease is given back. If that is later, the
 *	range is retired.
 * @bad_memory: The bytes from @offset on, counted from the start of the lease, have failed. They
 *	may include good bytes between two failures. They may have left the linear mapping by
 *	then. The failure counts as handled. May be NULL; then it does not, unless a file has the
 *	memory.
 *
 * The callbacks of a lease are called one at a time, from a work item, with no lock held. They may
 * sleep, and may call any function here for their lease, except pmem_rs_lease_get(). They may be
 * called before that has returned to the holder. A callback must not wait for another thread that
 * is in pmem_rs_lease_put(), nor for the unbind, which holds device locks of the nd bus. If it
 * gives back another lease, it waits for a callback of that one.
 *
 * The structure is copied by pmem_rs_lease_get().
 */
struct pmem_rs_lease_ops {
	struct module *owner;
	void (*revoke)(struct pmem_rs_lease *lease, void *data);
	void (*bad_memory)(struct pmem_rs_lease *lease, void *data, u64 offset, u64 len);
};

/**
 * pmem_rs_lease_get() - hold a range of a DAX disk
 * @dev: the number of the block device
 * @offset: where the range begins, in bytes; a multiple of PAGE_SIZE
 * @len: the length of the range in bytes, a multiple of PAGE_SIZE; 0 for all up to the end
 * @ops: the callbacks of the holder
 * @data: passed to the callbacks
 *
 * If the range is one piece of physical memory, its address is in the linear mapping. Several
 * pieces (dm-linear with several targets, dm-stripe) are mapped again, contiguously.
 *
 * Context: May sleep. Not in a callback, nor with a lock that a callback takes, except one that
 *	keeps callbacks waiting until the result was stored.
 * Return: the lease, to be given back by pmem_rs_lease_put(), or
 *	-EINVAL if an argument is not as described,
 *	-ENXIO if there is no such device, or it is being unbound,
 *	-EBUSY if it is claimed: mounted, open with O_EXCL, below device-mapper, leased; or if a
 *	disk is suspended,
 *	-EACCES if it is read-only, or a disk below device-mapper is,
 *	-ERANGE if the range is not all in the device,
 *	-EOPNOTSUPP if it has no DAX, a piece belongs to another driver, or a target of a
 *	device-mapper table begins within a page,
 *	-EAGAIN if the table of a device-mapper device has changed meanwhile,
 *	-E2BIG if there are more pages in several pieces than vmap() maps,
 *	-ENOMEM, or an error of the layers in between.
 */
struct pmem_rs_lease *pmem_rs_lease_get(dev_t dev, u64 offset, u64 len,
					const struct pmem_rs_lease_ops *ops, void *data);

/**
 * pmem_rs_lease_put() - give a lease back
 * @lease: the lease, which no other thread may use any more
 *
 * Waits for a callback of the lease that runs, except if this is called inside of it. No callback
 * is called after this. The claim has ended, and the address is not valid any more.
 *
 * Context: May sleep.
 */
void pmem_rs_lease_put(struct pmem_rs_lease *lease);

/**
 * pmem_rs_lease_address() - get the address of the first byte
 * @lease: the lease
 *
 * A load from memory that has failed raises a machine check, and a store to it is an oops. So the
 * memory is read and written by the functions below, which refuse what is known to be bad.
 *
 * Context: Any.
 * Return: the address, valid until the lease is given back.
 */
void *pmem_rs_lease_address(const struct pmem_rs_lease *lease);

/**
 * pmem_rs_lease_size() - get the length in bytes
 * @lease: the lease
 *
 * Context: Any.
 * Return: the length.
 */
u64 pmem_rs_lease_size(const struct pmem_rs_lease *lease);

/**
 * pmem_rs_lease_read() - copy from the memory
 * @lease: the lease
 * @offset: where to begin, in bytes
 * @buf: where to copy to
 * @len: how much
 *
 * Survives machine checks, where the architecture can (ARCH_HAS_COPY_MC).
 *
 * Context: Not in NMI. With PREEMPT_RT, only where a spinlock_t may be taken. Does not sleep
 *	otherwise.
 * Return: 0, -ERANGE if the bytes are not all in the lease, or -EIO if some of them have failed.
 *	@buf then has an unspecified mix of old and new bytes.
 */
int pmem_rs_lease_read(const struct pmem_rs_lease *lease, u64 offset, void *buf, size_t len);

/**
 * pmem_rs_lease_write() - copy to the memory, past the CPU caches
 * @lease: the lease
 * @offset: where to begin, in bytes
 * @buf: where to copy from
 * @len: how much
 *
 * The bytes are durable after the next pmem_rs_lease_flush(). A write to the disk repairs memory
 * that has failed; this function does not.
 *
 * Context: Not in NMI. With PREEMPT_RT, only where a spinlock_t may be taken. Does not sleep
 *	otherwise.
 * Return: 0, -ERANGE if the bytes are not all in the lease, -EROFS if the disk, or one below
 *	device-mapper that has some of the bytes, has become read-only, or -EIO if some of the
 *	bytes have failed. After the last two, those before may be written.
 */
int pmem_rs_lease_write(const struct pmem_rs_lease *lease, u64 offset, const void *buf, size_t len);

/**
 * pmem_rs_lease_flush() - make what pmem_rs_lease_write() has written durable
 * @lease: the lease
 *
 * What was stored by the address has to be written back from the CPU caches first.
 *
 * Context: May sleep.
 * Return: 0, or the error of the flush of the disk: -EIO once it was removed.
 */
int pmem_rs_lease_flush(const struct pmem_rs_lease *lease);

#endif
