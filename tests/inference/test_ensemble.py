import torch

from biasreg.inference.ensemble import ensemble_displacement


def test_one_network_gives_its_own_displacement(make_network, configuration):
    network = make_network(configuration, (1.0, -2.0, 0.5)).eval()
    images = torch.rand(2, 1, 1, 8, 8, 8)
    displacement = ensemble_displacement([network], *images)
    assert displacement.shape == (1, 3, 8, 8, 8)
    assert displacement.dtype == torch.float32
    torch.testing.assert_close(displacement, network(*images).displacement.detach())


def test_several_networks_are_averaged(make_network, configuration):
    networks = [make_network(configuration, shift).eval() for shift in ((1.0, 0.0, 0.0), (2.0, 0.0, -3.0))]
    displacement = ensemble_displacement(networks, *torch.rand(2, 1, 1, 8, 8, 8))
    expected = torch.tensor([1.5, 0.0, -1.5])[None, :, None, None, None].expand_as(displacement)
    torch.testing.assert_close(displacement, expected)


def test_no_gradient_is_kept(make_network, configuration):
    network = make_network(configuration).eval()
    assert not ensemble_displacement([network], *torch.rand(2, 1, 1, 8, 8, 8)).requires_grad
