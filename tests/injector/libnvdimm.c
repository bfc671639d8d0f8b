// SPDX-License-Identifier: GPL-2.0

/* What of libnvdimm has no Rust binding: its descriptors, filled in. */

#include <linux/bits.h>
#include <linux/blkdev.h>
#include <linux/libnvdimm.h>
#include <linux/module.h>
#include <linux/ndctl.h>
#include <linux/nd.h>
#include <linux/numa.h>
#include <linux/set_memory.h>

/* In provider.rs. */
int injector_command(struct nvdimm_bus_descriptor *desc, struct nvdimm *nvdimm,
		     unsigned int command, void *buffer, unsigned int len, int *status);

struct nvdimm_bus *injector_bus_register(struct device *parent);
struct nd_region *injector_region_create(struct nvdimm_bus *bus, u64 start, u64 size);
struct nd_region *injector_region_of(const char *disk);
struct nvdimm_bus *injector_bus_of(struct nd_region *region);
void injector_region_notify(struct nd_region *region);
int injector_set_mce_nospec(unsigned long pfn);

static struct nvdimm_bus_descriptor descriptor = {
	.provider_name = "injector",
	.module = THIS_MODULE,
	.cmd_mask = BIT(ND_CMD_ARS_CAP) | BIT(ND_CMD_CLEAR_ERROR),
	.ndctl = injector_command,
};

struct nvdimm_bus *injector_bus_register(struct device *parent)
{
	return nvdimm_bus_register(parent, &descriptor);
}

struct nd_region *injector_region_create(struct nvdimm_bus *bus, u64 start, u64 size)
{
	struct resource resource = DEFINE_RES_MEM(start, size);
	struct nd_region_desc region = {
		.res = &resource,
		.numa_node = NUMA_NO_NODE,
		.target_node = NUMA_NO_NODE,
	};

	return nvdimm_pmem_region_create(bus, &region);
}

/* The parent of a disk is a namespace, or the device that claims it: both are in a region. */
struct nd_region *injector_region_of(const char *disk)
{
	struct file *file = bdev_file_open_by_path(disk, BLK_OPEN_READ, NULL, NULL);
	struct nd_region *region;

	if (IS_ERR(file))
		return NULL;
	region = to_nd_region(disk_to_dev(file_bdev(file)->bd_disk)->parent->parent);
	bdev_fput(file);
	return region;
}

struct nvdimm_bus *injector_bus_of(struct nd_region *region)
{
	return to_nvdimm_bus(nd_region_dev(region)->parent);
}

void injector_region_notify(struct nd_region *region)
{
	nvdimm_region_notify(region, NVDIMM_REVALIDATE_POISON);
}

int injector_set_mce_nospec(unsigned long pfn)
{
	return set_mce_nospec(pfn);
}
